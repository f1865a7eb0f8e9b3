"""How much of what a machine can do a run used: of its arithmetic and of its memory's bandwidth.

Takes FLOPs and bytes as numbers and knows no model. Whether a run is compared with all experts or against those that
it met is a matter of what is counted, and both are given.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What a run had to do.

    Attributes:
        active_flops: With the k experts of each token (1 multiply-add is 2).
        all_flops: As if each token met every expert.
        met_bytes: Read, with the experts that the batches met.
        all_bytes: Read, had every pass met every expert.
    """

    active_flops: float
    all_flops: float
    met_bytes: float
    all_bytes: float


@dataclass(frozen=True)
class Utilization:
    """Shares of a peak, and the peak.

    Attributes:
        mfu: All FLOPs over what the peak does in the time; over 1 where experts are left out, which is their point.
        s_mfu: FLOPs with k experts over it: at most 1 if the peak is one.
        mbu: All bytes over what the peak moves in the time.
        s_mbu: Bytes with the experts met over it.
        peak_flops_per_s: Of the dtype, dense.
        peak_bytes_per_s: Of the memory.
    """

    mfu: float
    s_mfu: float
    mbu: float
    s_mbu: float
    peak_flops_per_s: float
    peak_bytes_per_s: float


def utilization(work: Work, *, seconds: float, peak_flops_per_s: float, peak_bytes_per_s: float) -> Utilization:
    """The shares of a machine's peaks that a run used.

    Args:
        work: What it had to do.
        seconds: How long it took.
        peak_flops_per_s: The dtype's dense peak, or what a large product reached on the machine.
        peak_bytes_per_s: The memory's peak, or what a large copy reached.

    Raises:
        ValueError: a time or a peak is not positive.

    Source:
        Jiang et al. 2024 (MoE-CAP), arXiv:2412.07067 †; differs: its S-MFU counts one expert a token, ours k.
    """
    for name, value in (
        ("seconds", seconds), ("peak_flops_per_s", peak_flops_per_s), ("peak_bytes_per_s", peak_bytes_per_s),
    ):  # fmt: skip
        if not value > 0:
            raise ValueError(f"{name} is {value}, more than 0 was expected")
    flops, moved = peak_flops_per_s * seconds, peak_bytes_per_s * seconds
    return Utilization(
        mfu=work.all_flops / flops,
        s_mfu=work.active_flops / flops,
        mbu=work.all_bytes / moved,
        s_mbu=work.met_bytes / moved,
        peak_flops_per_s=peak_flops_per_s,
        peak_bytes_per_s=peak_bytes_per_s,
    )
