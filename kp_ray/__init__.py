"""kp_ray: human-keypoint training on a Ray cluster, from labelled frames to a submission."""

__version__ = "0.1.0"
