"""Seeded drawings of pedestrians in several camera styles: the default input when there is no data.

Nobody in these pictures exists.
"""

from domains.synthetic.camera import STYLES, Camera, draw_camera
from domains.synthetic.person import Person, draw_person
from domains.synthetic.scene import draw_crop, golden_crops, make_domain

__all__ = ["STYLES", "Camera", "Person", "draw_camera", "draw_crop", "draw_person", "golden_crops", "make_domain"]
