"""Products of rows whose result for a row does not depend on the rows beside it.

A matrix product of many rows sums in another order than that of one, so that a prediction would differ in its last digit
with the requests that it is made with. These products sum as for one row.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.generic)


def times(rows: NDArray[Number], matrix: NDArray[Number]) -> NDArray[Number]:
    """Each row, shape (rows, n), times a matrix, shape (n, m), or times its own, shape (rows, n, m).

    >>> times(np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[1.0], [10.0]])).tolist()
    [[21.0], [10.0]]
    """
    return np.asarray(np.matmul(rows[:, None, :], matrix)[:, 0])


def dot(rows: NDArray[Number], vector: NDArray[Number]) -> NDArray[Number]:
    """Each row, shape (rows, n), times a vector, shape (n,), or times its own, shape (rows, n).

    >>> dot(np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([1.0, 10.0])).tolist()
    [21.0, 10.0]
    """
    return np.asarray(np.matmul(rows[:, None, :], vector[..., None])[:, 0, 0])
