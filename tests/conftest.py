"""One thread for every test: sums in another order differ in their last bits, and spinning threads only wait."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
