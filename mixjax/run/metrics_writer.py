"""The numbers of a run on disk: metrics.jsonl, perf.jsonl and TensorBoard events.

metrics.jsonl holds what training and evaluation computed, one object per line with its
step: a run that was interrupted and continued writes the same bytes as one that was
not. Timings go to perf.jsonl. Both go to TensorBoard event files as well.
"""

import json
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.histogram_pb2 import HistogramProto
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Writer:
    """metrics.jsonl, perf.jsonl and one TensorBoard event file per start."""

    def __init__(self, workdir: Path, *, length: int, step: int):
        """length: bytes of metrics.jsonl to keep; what is beyond will come again."""
        self.path = workdir / "metrics.jsonl"
        self._metrics = open(self.path, "ab")
        self._metrics.truncate(length)
        self._metrics.seek(0, 2)
        self._perf = open(workdir / "perf.jsonl", "a")
        name = f"events.out.tfevents.{time.time_ns()}.mixjax"
        self._events = open(workdir / name, "wb")
        self._records = RecordWriter(self._events)
        self._event(0, file_version="brain.Event:2")
        # Tells TensorBoard to forget what an interrupted start wrote beyond `step`.
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def length(self) -> int:
        """Bytes of metrics.jsonl so far."""
        return self._metrics.tell()

    def metrics(self, step: int, values: dict) -> None:
        """Values that a repeated run would compute again, to the last bit."""
        line = json.dumps({"step": step, **values})
        self._metrics.write(line.encode() + b"\n")
        self._metrics.flush()
        self._scalars(step, values)

    def perf(self, step: int, values: dict) -> None:
        """Timings."""
        self._perf.write(json.dumps({"step": step, **values}) + "\n")
        self._perf.flush()
        self._scalars(step, values)

    def image(self, step: int, tag: str, png: bytes, size: tuple[int, int]) -> None:
        """A picture, already encoded; size is (height, width)."""
        picture = Summary.Image(
            height=size[0], width=size[1], colorspace=3, encoded_image_string=png
        )
        self._event(
            step, summary=Summary(value=[Summary.Value(tag=tag, image=picture)])
        )

    def histograms(self, step: int, found: dict[str, dict]) -> None:
        """Histograms by tag; each has the fields of TensorBoard's HistogramProto."""
        values = [
            Summary.Value(tag=tag, histo=HistogramProto(**fields))
            for tag, fields in found.items()
        ]
        self._event(step, summary=Summary(value=values))

    def _scalars(self, step: int, values: dict) -> None:
        pairs = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._event(step, summary=Summary(value=pairs))

    def _event(self, step: int, **content) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
        self._events.flush()

    def close(self) -> None:
        for file in (self._metrics, self._perf, self._events):
            file.close()


class Quiet:
    """A Writer of nothing, for all processes but the first, which has the same."""

    def length(self) -> int:
        return 0

    def metrics(self, *ignored) -> None:
        pass

    perf = image = histograms = metrics

    def close(self) -> None:
        pass
