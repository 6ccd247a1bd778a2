"""Plots contain their titles, labels and values, and have a transparent background."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from kp_ray.keypoints import DACON24
from kp_ray.visualization.plots import (
    plot_bars,
    plot_curves,
    plot_distributions,
    plot_parallel_coordinates,
    plot_percentages,
    plot_poses,
    plot_scatter,
)


def svg_text(svg: bytes) -> str:
    """Return all text of an SVG; fail if it is not valid XML."""
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_plots_contain_titles_labels_values_and_names_with_special_characters() -> None:
    special_name = "_<b>&$\\frac{1}$ 관절"
    assert "a\N{REPLACEMENT CHARACTER}b" in svg_text(plot_bars(["a\vb"], [1.0], "px", "Bars"))
    curves = plot_curves({special_name: ([1, 2], [3, float("nan")]), "b": ([1], [-1])}, "step", "loss", "Title", True)
    bars = plot_bars([special_name, "b", "c"], [1.5, None, float("nan")], "px", "Bars")
    points = plot_scatter([1e-4, 1e-3], [5, 4], "lr", "rmse", "Points", log_x=True, best_index=1)
    distributions = plot_distributions([special_name], [np.array([1.0, np.nan, 3.0])], "deg", "Spread")
    percentages = plot_percentages([special_name], ["nose", "neck"], np.array([[0.25, np.nan]]), "Shares")
    trials = {"lr": [1e-4, 1e-2, 1e-3], special_name: ["a", "b", None]}
    parallel = plot_parallel_coordinates(trials, [3.0, None, 2.0], "rmse", "Trials")
    poses = plot_poses({special_name: np.random.default_rng(0).uniform(0, 9, (3, 24, 2))}, DACON24, "Poses")
    for svg, words in (
        (curves, ["step", "loss", "Title", special_name]),
        (bars, ["Bars", special_name, "1.50"]),
        (points, ["lr"]),
        (distributions, ["Spread", special_name, "deg"]),
        (percentages, ["Shares", special_name, "neck", "25", "-"]),
        (parallel, ["Trials", "rmse", "lr", special_name, "0.0001", "0.001"]),
        (poses, ["Poses", special_name]),
    ):
        assert all(word in svg_text(svg) for word in words)


def test_plots_are_transparent_and_equal_input_gives_equal_bytes() -> None:
    first_svg, second_svg = (plot_curves({"a": ([1, 2], [3, 4])}, "x", "y", "t") for _ in range(2))
    assert first_svg == second_svg
    assert b"fill: #ffffff" not in first_svg


def test_plots_without_data_are_valid() -> None:
    for svg in (
        plot_curves({}, "x", "y", "t", True),
        plot_bars([], [], "x", "t"),
        plot_scatter([], [], "x", "y", "t"),
        plot_distributions([], [], "x", "t"),
        plot_percentages(["a"], [], np.zeros((1, 0)), "t"),
        plot_parallel_coordinates({"lr": []}, [], "rmse", "t"),
        plot_poses({"a": np.full((1, 24, 2), np.nan)}, DACON24, "t"),
    ):
        assert svg_text(svg)
