"""Keeping BatchNorm's statistics where they are while a later domain is learned."""

from __future__ import annotations

from reid.terms.term import Step, Term


class FixedStatistics(Term):
    """From the second domain on the backbone normalises by the statistics that it has, in training as when it is
    matched.

    In training mode a network is fitted to the statistics of each batch, so to the new domain's alone, and no
    statistics are right for it once its weights are averaged with those of a network that was fitted to others. Held,
    both networks that are averaged normalise alike, old domains see the statistics that they were learned with, and the
    new domain is brought to them by the weights. Freezing after pre-training is usual in detection (Ren et al., NeurIPS
    2015); Pham et al. (ICLR 2022) show what BatchNorm costs in continual learning. It has no loss, and changes nothing
    in a network without BatchNorm or dropout. The neck is not held.
    """

    def begin(self, step: Step) -> None:
        """Hold the backbone in eval mode, but at the first domain, which the statistics have to be learned from."""
        step.model.still = step.index > 1

    def after_training(self, step: Step) -> None:
        """Release it."""
        step.model.still = False
