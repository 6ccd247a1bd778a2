"""Presets of the configuration, and the default recipes."""

from typing import Any

DEFAULT_RECIPES = (
    "Original", "RandomCrop_1", "RandomCrop_2", "RandomSquare_1", "CenterCrop_1", "Rotate45", "Rotate45_CenterCrop",
    "Rotate45_RandomCrop_1", "Rotate45_RandomCrop_2", "Rotate45_CenterCrop", "Rescale_RandomCrop_1",
    "Rescale_RandomCrop_2", "Rescale_RandomCrop_3", "Rescale_CenterCrop", "Rescale_Rotate45_RandomCrop_1",
    "Rescale_Rotate45_RandomCrop_2", "Rescale_Rotate45_RandomCrop_3", "Rescale_Rotate45_CenterCrop",
)  # fmt: skip
"""The 18 recipes of the published solution, which lists `Rotate45_CenterCrop` twice as well."""
CONFIG_PRESETS: dict[str, dict[str, Any]] = {
    # The settings of the published solution (the repository hangjoo/dacon_key_point_detection). The page
    # docs/from-the-notebook.md lists the differences that remain in every preset.
    "dacon": {
        # The published scripts set one seed, 42 in `train_val_split`. `fix_random_seed` (default 423) is never called.
        "seed": 42,
        # The published solution trains on variants of every image, those of its validation frames (two per clip)
        # included. Without held-out scenes there is no evaluation, no `model_best.pth` and no search;
        # `--set split.fraction=0.1` holds out a tenth of the scenes and enables the first two, and the search if
        # `tune.num_trials` is set too.
        "split": {"fraction": 0.0, "seed": 42},
        "model": {
            "preset": "x101",  # keypoint_rcnn_X_101_32x8d_FPN_3x of the model zoo
            # The model's COCO weights, as in the published solution. There, the keypoint head's last layer starts at
            # random; kp_ray starts this layer from COCO's channels too.
            "weights": "zoo",
            "cfg": {
                "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 256,  # set in the training script
                "DATALOADER.ASPECT_RATIO_GROUPING": True,  # Detectron2's default, which the script keeps
            },
        },
        "train": {
            # The solver of the training script, for one GPU; more workers scale it by Detectron2's rule.
            "optimizer": "sgd",
            "base_lr": 0.001,
            "max_iter": 10000,
            "schedule": "multistep",
            "steps": [3000, 4000, 5000, 6000, 7000, 8000],
            "gamma": 0.8,
            "warmup_iters": 1000,  # Detectron2's default, as are weight decay and flip
            "weight_decay": 0.0001,
            "flip": True,
            "ims_per_batch": 2,
            "eval_period": 5000,
            "use_gpu": True,  # the published solution ran on one GPU
            "precision": "fp32",  # 32-bit numbers, Detectron2's default, which the script keeps
            "deterministic": False,  # the published scripts set no cudnn flag
        },
        "tune": {"num_trials": 0},  # no search: the authors of the solution changed the learning rate by hand
        "predict": {
            "gpus_per_actor": 1,  # the published solution ran on one GPU
            "precision": "fp32",  # as DefaultPredictor computes
            "decode": "argmax",  # Detectron2's own decoding
            "person": "score",  # the best-scoring instance
            "score_threshold": 0.7,  # the threshold that the script gives to DefaultPredictor
            "fallback_threshold": 0.7,  # equal to score_threshold: no detection below it is used
            "fusion": "mean",  # the average over the models that find a person
            # The published solution writes 48 zeros where a model finds nobody, and replaces them by another model's
            # values. kp_ray also fills those that no model can replace, from the same clip.
            "missing": "fill",
        },
    },
    # Settings for the lowest error on GPUs with the published network, whose training needs a GPU and was not run. With
    # small members, which learn generated people on CPUs, benchmarks/results/training_parts.md and accuracy.md measure
    # some of them.
    "best": {
        "augment": {"box_margin_px": 20},  # as in the preset demo: without it the loss may ignore outer keypoints
        "model": {
            "preset": "x101",  # as published; 66.0 keypoint AP on COCO in Detectron2's zoo, where r50 has 65.5
            "weights": "zoo",
            "cfg": {
                # Heat maps of 112x112 instead of 56x56 bins: a person of 600 to 900 px has 5 to 8 px per bin, not 11
                # to 16. Mask R-CNN (He et al. 2017) finds that keypoints need a high resolution. For small members
                # the median error fell with each of three seeds, the RMSE with two.
                "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 28,
                "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 256,  # as in the published solution
            },
        },
        "train": {
            # Three members that differ by their seeds; benchmarks/results/ensemble.md has figures of such an ensemble.
            "members": [{"name": name, "seed": seed} for seed, name in enumerate(("a", "b", "c"), 1)],
            "use_gpu": True,
            # 40,000 batches of 2 show each of the 18 variants of 4195 frames once; the 10,000 batches of the published
            # solution show a quarter of the variants. With small members twice as many iterations helped most.
            "max_iter": 40000,
            # Needs no steps for the new length (Loshchilov and Hutter 2017); better than steps for small members.
            "schedule": "cosine",
            # Averages the last thousand iterations (Tarvainen and Valpola 2017). It changes small members little.
            "ema_decay": 0.999,
            # Detectron2's default, and what `flip` in predict.tta needs; worse in trainings of 340 iterations.
            "flip": True,
        },
        # No search, because a trial of X-101 takes hours; a search must find members for `flip` in predict.tta.
        "tune": {"num_trials": 0, "flips": [True]},
        "predict": {
            # Mirrored images as in HRNet's test (Sun et al. 2019); the scale 1.25 lowered the RMSE of the preset demo.
            "tta": ["flip", 1.25],
        },
    },
    # A small network that learns on two CPU cores in minutes, from the recipes that keep people upright.
    "demo": {
        "augment": {"box_margin_px": 20, "min_visible": 14},
        "model": {"preset": "r18"},
        "train": {
            "recipes": ["Original", "CenterCrop_1", "Rescale_CenterCrop", "Rescale_RandomCrop_3"],
            "flip": False,
            "optimizer": "adamw",
            "base_lr": 0.003,  # the best of four rates at 340 iterations (benchmarks/results/short_trials.md)
            "weight_decay": 0.01,
            "schedule": "cosine",
            "max_iter": 480,
            "warmup_iters": 28,
            "ims_per_batch": 4,
            "eval_period": 480,
            "checkpoint_period": 120,
            "cpus_per_worker": 0.5,
            "threads_per_worker": 1,
        },
        # A trial has an eighth of the training's iterations, and 40 validation images. That is too little for a close
        # decision, and prefers low rates: in trials of 68 of 340 iterations, 0.001, which is worse in whole trainings,
        # had a 24 % lower error than 0.003.
        "tune": {
            "num_trials": 4,
            "max_iter": 56,
            "eval_period": 28,  # an evaluation takes as long as 10 iterations or more
            "min_gain": 0.1,
            "base_lr": [0.002, 0.006],
            "weight_decay": [0.01, 0.01],
            "warmup": [0.03, 0.12],
            "schedules": ["cosine"],
            "flips": [False],
            "recipes": {},
        },
        # benchmarks/results/accuracy.md: the view at 1.25 times the size lowers the RMSE, for twice the CPU time.
        "predict": {"actors": [1, 2], "score_threshold": 0.5, "tta": [1.25]},
    },
}
"""Settings by name of the preset, in the structure of a configuration file, which overrides them."""
