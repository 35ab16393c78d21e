"""Half precision on a CPU without the instructions for it: half.h in plain C++, which users do not get."""

from jclip import runtime


def install(kernel="Plain", setattr=setattr):
    """Make a struct of half.h compute the bfloat16 products of this process."""
    runtime.jittor()
    from jclip import kernels

    setattr(runtime, "has_bfloat16", lambda: True)
    setattr(kernels, "KERNEL", kernel)
