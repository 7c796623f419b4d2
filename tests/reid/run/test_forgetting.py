"""The drawn styles differ enough that plain fine-tuning forgets: without that, a demonstration of not forgetting would
show nothing.
"""

import pytest

from domains.synthetic import make_domain
from reid.config import build_config
from reid.run import Run


@pytest.mark.slow
def test_fine_tuning_forgets_the_first_drawn_domain(tmp_path):
    first, second = (
        make_domain(tmp_path / style, style, identities=48, per_camera=2) for style in ("plaza", "nightstreet")
    )
    settings = {
        "model": {"backbone": "test_resnet", "weights": "none", "dim": 64},
        "crop": {"height": 64, "width": 32},
        "train": {"iterations": 60, "identities": 12, "instances": 4, "lr": 2e-3},
        "augment": {"erase": 0.0},
        "method": "fine_tune",
    }
    run = Run.create(tmp_path / "run", build_config(settings))
    for site in (first, second):
        run.learn(site)
        run.fill_scores([first, second])
    learned, kept = run.scores.value(1, "plaza"), run.scores.value(2, "plaza")
    assert learned > run.scores.value(0, "plaza") + 20, "the first domain was learned"
    assert kept < learned - 10, "and forgotten"
