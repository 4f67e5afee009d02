"""Time of a run by kind of operation."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

_PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})
_ATTENTION = "scaled_dot_product"


def time_shares(run: Callable[[], object]) -> dict[str, float]:
    """Return shares of a run's time in operators, on the CPU: matrix products, attention, and everything else.

    An operator counts without those that it calls. Time outside of torch's operators is left out.

    Args:
        run: The run, which is profiled once.
    """
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    products = sum(time for name, time in times.items() if name in _PRODUCTS)
    attention = sum(time for name, time in times.items() if _ATTENTION in name)
    every = sum(times.values())
    return {
        "products": products / every,
        "attention": attention / every,
        "other": (every - products - attention) / every,
    }
