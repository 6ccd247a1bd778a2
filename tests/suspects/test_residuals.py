"""The median errors of the other frames of a clip."""

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kp_ray.suspects.residuals import MIN_PER_BIN, _medians_by_bin, _medians_of_other_frames


@given(
    arrays(
        np.float64, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.sampled_from([0, 1, 2.5, 7, np.nan])
    ),
    st.data(),
)
def test_the_median_of_the_other_frames_leaves_out_the_frame_itself(
    residuals: npt.NDArray[np.float64], data: st.DataObject
) -> None:
    clips = data.draw(st.lists(st.sampled_from("ab"), min_size=len(residuals), max_size=len(residuals)))
    medians = _medians_of_other_frames(residuals, clips)
    for row, column in np.ndindex(residuals.shape):
        others = [
            residuals[other, column]
            for other, clip in enumerate(clips)
            if clip == clips[row] and other != row and np.isfinite(residuals[other, column])
        ]
        assert medians[row, column] == (np.median(others) if others else 0)


def test_points_of_equal_values_have_the_same_usual_residual_in_any_order() -> None:
    residuals = np.arange(4.0 * MIN_PER_BIN)[:, None]
    medians = _medians_by_bin(residuals, np.ones_like(residuals))
    assert (medians == np.median(residuals)).all()
    two_values = np.repeat([1.0, 2.0], 2 * MIN_PER_BIN)[:, None]
    halves = np.split(residuals, 2)
    medians = _medians_by_bin(residuals, two_values)
    assert (medians == np.repeat([np.median(half) for half in halves], 2 * MIN_PER_BIN)[:, None]).all()
    order = np.random.default_rng(0).permutation(len(residuals))
    np.testing.assert_array_equal(_medians_by_bin(residuals[order], two_values[order]), medians[order])
