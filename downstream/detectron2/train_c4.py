"""Trains or evaluates the R50-C4 detectors of the .yaml files beside it.

    python downstream/detectron2/train_c4.py --num-gpus 8 --config-file FILE.yaml \
        MODEL.WEIGHTS r50.pkl OUTPUT_DIR runs/voc
"""

import extra_norm  # noqa: F401  (its head is named in the .yaml files)
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    launch,
)
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator


class Trainer(DefaultTrainer):
    """Scores VOC by its own rule and COCO by COCO's."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        if dataset_name.startswith("voc_"):
            return PascalVOCDetectionEvaluator(dataset_name)
        folder = output_folder or f"{cfg.OUTPUT_DIR}/inference"
        return COCOEvaluator(dataset_name, output_dir=folder)


def configured(args):
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args):
    cfg = configured(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpoint = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpoint.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
