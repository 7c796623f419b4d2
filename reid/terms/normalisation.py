"""Freezing BatchNorm's statistics while a later domain is learned."""

from __future__ import annotations

from reid.terms.term import Step, Term


class FixedStatistics(Term):
    """From the second domain on, the backbone normalises with the statistics that it has, in training as in matching.

    In training mode a network adapts to the statistics of each batch, so to those of the new domain alone, and no
    statistics are right once its weights are averaged with those of a network adapted to others. With frozen statistics
    both networks normalise alike, old domains see the statistics that they were learned with, and the weights bring the
    new domain to them. Freezing after pre-training is common in detection (Ren et al., NeurIPS 2015); Pham et al. (ICLR
    2022) show what BatchNorm costs in continual learning. The term has no loss, and no effect on a network without
    BatchNorm or dropout. The neck is not frozen.
    """

    def begin(self, step: Step) -> None:
        """Keep the backbone in eval mode, except on the first domain, from which the statistics are learned."""
        step.model.still = step.index > 1

    def after_training(self, step: Step) -> None:
        """Let the backbone follow the model's mode again."""
        step.model.still = False
