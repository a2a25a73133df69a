"""Cascade R-CNN's heads as iBOT trains them, which is mmdetection's form of them.

Detectron2's own differ: boxes of all classes together, no new sample between stages,
one head for masks, gradients of features divided by three. Here
- a stage has boxes of each class, and the next one begins from those of the right class
  in training (the likeliest one where there is none) and the likeliest one in tests;
- every stage matches and samples anew, with the true boxes added;
- every stage has its masks, averaged in tests, as the logits of the classes are;
- losses of a stage are weighted, gradients are not.
"""

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.utils.events import get_event_storage
from torch import nn


class FlooredMatcher(Matcher):
    """A true box takes its best anchor below the threshold only from `floor` on."""

    def __init__(self, thresholds, labels, allow_low_quality_matches, floor):
        super().__init__(thresholds, labels, allow_low_quality_matches)
        self.floor = floor

    def set_low_quality_matches_(self, match_labels, match_quality_matrix):
        enough = match_quality_matrix.max(dim=1).values >= self.floor
        if enough.any():
            matrix = match_quality_matrix[enough]
            super().set_low_quality_matches_(match_labels, matrix)


class ResamplingCascade(CascadeROIHeads):
    """CascadeROIHeads with `mask_heads` and `stage_weights`, one for each stage."""

    def __init__(self, *, mask_heads, stage_weights, **kwargs):
        super().__init__(mask_head=nn.ModuleList(mask_heads), **kwargs)
        self.stage_weights = list(stage_weights)

    def forward(self, images, features, proposals, targets=None):
        if self.training:
            return proposals, self._losses(features, proposals, targets)
        return self._detections(features, proposals), {}

    def _losses(self, features, proposals, targets):
        losses = {}
        for stage, weight in enumerate(self.stage_weights):
            self.proposal_matcher = self.proposal_matchers[stage]
            proposals = self.label_and_sample_proposals(proposals, targets)
            outputs = self._run_stage(features, proposals, stage)
            with get_event_storage().name_scope(f"stage{stage}"):
                found = self.box_predictor[stage].losses(outputs, proposals)
            found = found | self._mask_losses(features, proposals, stage)
            losses |= {f"{k}_stage{stage}": weight * v for k, v in found.items()}
            proposals = self._refined(outputs, proposals, stage)
        return losses

    def _detections(self, features, proposals):
        logits = []
        for stage in range(self.num_cascade_stages):
            outputs = self._run_stage(features, proposals, stage)
            logits.append(outputs[0])
            if stage + 1 < self.num_cascade_stages:
                proposals = self._refined(outputs, proposals, stage)
        last = self.box_predictor[-1]
        probabilities = torch.stack(logits).mean(dim=0).softmax(dim=-1)
        found, _ = fast_rcnn_inference(
            last.predict_boxes(outputs, proposals),
            probabilities.split([len(p) for p in proposals]),
            [p.image_size for p in proposals],
            last.test_score_thresh,
            last.test_nms_thresh,
            last.test_topk_per_image,
        )
        return self.forward_with_given_boxes(features, found)

    def _run_stage(self, features, proposals, stage):
        maps = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _mask_losses(self, features, proposals, stage):
        positive, _ = select_foreground_proposals(proposals, self.num_classes)
        pooled = self._mask_features(features, [p.proposal_boxes for p in positive])
        return self.mask_head[stage](pooled, positive)

    def _mask_features(self, features, boxes):
        return self.mask_pooler(
            [features[name] for name in self.mask_in_features], boxes
        )

    def _forward_mask(self, features, instances):
        """Detections with the mean of all stages' masks."""
        pooled = self._mask_features(features, [i.pred_boxes for i in instances])
        stages = []
        for head in self.mask_head:
            head(pooled, instances)
            stages.append([i.pred_masks for i in instances])
        for found, *masks in zip(instances, *stages, strict=True):
            found.pred_masks = torch.stack(masks).mean(dim=0)
        return instances

    @torch.no_grad()
    def _refined(self, outputs, proposals, stage):
        """The boxes that the next stage begins from."""
        scores = outputs[0].split([len(p) for p in proposals])
        boxes = self.box_predictor[stage].predict_boxes(outputs, proposals)
        each = zip(scores, boxes, proposals, strict=True)
        chosen = [self._chosen(*image) for image in each]
        sizes = [p.image_size for p in proposals]
        refined = self._create_proposals_from_boxes(chosen, sizes)
        for found in refined:  # a field that true boxes are added by; it is not read
            found.objectness_logits = found.proposal_boxes.tensor.new_zeros(len(found))
        return refined

    def _chosen(self, scores, boxes, proposals):
        """Of boxes [R, 4 * classes] one for each proposal, without the true boxes."""
        classes = scores[:, :-1].argmax(dim=1)
        keep = torch.ones_like(classes, dtype=torch.bool)
        if self.training:
            positive = proposals.gt_classes < self.num_classes
            classes = torch.where(positive, proposals.gt_classes, classes)
            if proposals.has("gt_boxes"):  # true boxes are added anew in each stage
                true = proposals.gt_boxes.tensor
                same = (proposals.proposal_boxes.tensor == true).all(dim=1)
                keep = ~(positive & same)
        rows = torch.arange(len(classes), device=classes.device)
        return boxes.view(len(classes), self.num_classes, 4)[rows, classes][keep]
