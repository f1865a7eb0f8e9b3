"""What the analyses of costs refuse alike, and the sizes that they go through."""

from workbench.efficiency.costs.devices import device
from workbench.efficiency.costs.formulas import dtype_bytes
from workbench.errors import AnalysisError, ModelError


def check(analysis: str, *, on: str, dtype: str, **numbers: int) -> None:
    """Refuses settings that cannot be meant.

    Raises:
        AnalysisError: an unknown device or dtype, one that the device has no peak for, or a number under 1.
    """
    try:
        dtype_bytes(dtype)
        device(on).peak(dtype)
    except ModelError as error:
        raise AnalysisError(f"{analysis}: {error}") from error
    for name, value in numbers.items():
        if value < 1:
            raise AnalysisError(f"{analysis}: {name} is {value}; 1 or more was expected.")


def doublings(largest: int) -> list[int]:
    """1, 2, 4 … up to a number."""
    return [2**n for n in range(largest.bit_length())]
