"""Detectron2 models: presets, inputs, weights and detections."""

import warnings

with warnings.catch_warnings():  # Detectron2 imports pkg_resources and torch.jit, both deprecated
    warnings.simplefilter("ignore")
    import detectron2.engine.defaults
    import detectron2.model_zoo  # noqa: F401
