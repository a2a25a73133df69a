"""The metrics of a run on disk: metrics.jsonl, perf.jsonl and TensorBoard events.

metrics.jsonl holds the results of training and evaluation, one JSON object with its
step per line. They are deterministic: a run that was interrupted and continued writes
the same bytes as an uninterrupted one. Timings therefore go to a file of their own,
perf.jsonl. Metrics and timings also go to TensorBoard event files.
"""

import json
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.histogram_pb2 import HistogramProto
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Writer:
    """Writes metrics.jsonl, perf.jsonl and a new TensorBoard event file."""

    def __init__(self, workdir: Path, *, length: int, step: int):
        """Opens the files of a run that starts or continues at `step`.

        length: the number of bytes of metrics.jsonl to keep, from the checkpoint. The
        lines after them are of steps that the run repeats.
        """
        self.path = workdir / "metrics.jsonl"
        self._metrics = open(self.path, "ab")
        self._metrics.truncate(length)
        self._metrics.seek(0, 2)  # tell() must report the new end, not the old one
        self._perf = open(workdir / "perf.jsonl", "a")
        # Nanoseconds, as two starts within a second must not share a file.
        name = f"events.out.tfevents.{time.time_ns()}.mixjax"
        self._events = open(workdir / name, "wb")
        self._records = RecordWriter(self._events)
        # TensorBoard expects the version of the format in the first event.
        self._event(0, file_version="brain.Event:2")
        # Makes TensorBoard drop what an interrupted start wrote after `step`.
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))

    def length(self) -> int:
        """Returns the current number of bytes of metrics.jsonl."""
        return self._metrics.tell()

    def metrics(self, step: int, values: dict) -> None:
        """Writes values that a repeated run computes again to the last bit."""
        line = json.dumps({"step": step, **values})
        self._metrics.write(line.encode() + b"\n")
        # A killed process loses nothing that it had written.
        self._metrics.flush()
        self._scalars(step, values)

    def perf(self, step: int, values: dict) -> None:
        """Writes timings and other values that differ from run to run."""
        self._perf.write(json.dumps({"step": step, **values}) + "\n")
        self._perf.flush()
        self._scalars(step, values)

    def image(self, step: int, tag: str, png: bytes, size: tuple[int, int]) -> None:
        """Writes an image, encoded as PNG; size is (height, width) in pixels."""
        image = Summary.Image(
            height=size[0],
            width=size[1],
            colorspace=3,  # RGB
            encoded_image_string=png,
        )
        self._event(step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def histograms(self, step: int, fields_by_tag: dict[str, dict]) -> None:
        """Writes histograms, given by the fields of TensorBoard's HistogramProto."""
        values = [
            Summary.Value(tag=tag, histo=HistogramProto(**fields))
            for tag, fields in fields_by_tag.items()
        ]
        self._event(step, summary=Summary(value=values))

    def _scalars(self, step: int, values: dict) -> None:
        scalars = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._event(step, summary=Summary(value=scalars))

    def _event(self, step: int, **content) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
        self._events.flush()

    def close(self) -> None:
        """Closes all files."""
        for file in (self._metrics, self._perf, self._events):
            file.close()


class NullWriter:
    """Has the methods of a Writer but writes nothing.

    For all processes but the first: every process computes the same metrics.
    """

    def length(self) -> int:
        return 0

    def metrics(self, *ignored) -> None:
        pass

    perf = image = histograms = metrics

    def close(self) -> None:
        pass
