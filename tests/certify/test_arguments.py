"""Bad counts, levels and radii are refused where they are given."""

import math

import numpy as np
import pytest

from certbench.certify.attainable import vote_threshold
from certbench.certify.intervals import binomial_interval, cp_lower, cp_lower_randomised, two_bounds
from certbench.certify.radii import radius_one, radius_two
from certbench.certify.significance import predict_pvalue
from certbench.errors import CertbenchError


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cp_lower(11, 10, 0.001), "more successes"),
        (lambda: cp_lower(-1, 10, 0.001), "negative"),
        (lambda: cp_lower(9.0, 10, 0.001), "whole numbers"),
        (lambda: cp_lower(np.array([0.9]) * 10, 10, 0.001), "whole numbers"),
        (lambda: cp_lower(5, 10, 0.0), "between 0 and 1"),
        (lambda: cp_lower(5, 10, 1.0), "between 0 and 1"),
        (lambda: cp_lower(5, 10, math.nan), "NaN"),
        (lambda: cp_lower(5, 10, "small"), "not a number"),
        (lambda: cp_lower(5, 10, "0.001"), "not a number"),
        (lambda: cp_lower(5, 10, None), "is None, not a number"),
        (lambda: radius_one(0.9, 0.0), "positive"),
        (lambda: radius_one(0.9, -0.25), "positive"),
        (lambda: radius_one(0.9, math.inf), "positive"),
        (lambda: radius_one(1.0, 0.25), "no finite sample"),
        (lambda: radius_one(math.nan, 0.25), "NaN"),
        (lambda: radius_two(0.9, 0.0, 0.25), r"\(0, 1\]"),
        (lambda: two_bounds(60, 41, 100, 0.001), "exceed"),
        (lambda: vote_threshold(0, 0.001, 0.5, 0.5), ">= 1"),
        (lambda: vote_threshold(100.0, 0.001, 0.5, 0.5), ">= 1, is 100.0"),
        (lambda: vote_threshold(True, 0.001, 0.5, 0.5), ">= 1, is True"),
        (lambda: vote_threshold(100, 0.001, -0.5, 0.5), "not negative"),
        (lambda: cp_lower_randomised(5, 10, 0.01, 0.0), r"\(0, 1\]"),
        (lambda: binomial_interval(5, 10, 0.95, method="wald"), "unknown interval"),
        (lambda: predict_pvalue(5, -1), "negative"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, message):
    with pytest.raises(CertbenchError, match=message):
        call()
