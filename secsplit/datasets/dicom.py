"""Grey pixels from a DICOM file, and nothing else of it: no patient's name, date or number ever leaves this function.

The stored values go through the modality and window transformations of the file (PS3.3 C.11) and are inverted where low
means white. A file that says that text is burned into its pixels is refused, for that text is often the patient's name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secsplit.datasets.records import mismatch
from secsplit.errors import EnvironmentFault

SUFFIXES = (".dcm", ".dicom")


def grey(path: Path, *, allow_burned_in: bool = False) -> NDArray[np.uint8]:
    """(rows, columns) bytes, the darkest value of the image 0 and its brightest 255. Raises DataError."""
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError:
        raise EnvironmentFault("DICOM files need pydicom: pip install 'secsplit[dicom]'") from None
    try:
        file = pydicom.dcmread(path)
        burned_in = str(file.get("BurnedInAnnotation", "NO")).upper() != "NO"
        stored: Any = file.pixel_array
    except (InvalidDicomError, AttributeError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise mismatch(f"{path}", expected="a DICOM image", got=f"{error}", fix="remove or convert the file") from None
    if burned_in and not allow_burned_in:
        raise mismatch(
            f"{path}",
            expected="pixels without text",
            got="BurnedInAnnotation",
            fix="remove the file, or blank the text and set data.allow_burned_in = true",
        )
    if stored.ndim != 2:
        raise mismatch(
            f"{path}", expected="one grey image", got=f"shape {stored.shape}", fix="remove or convert the file"
        )
    values = np.asarray(apply_voi_lut(apply_modality_lut(stored, file), file), dtype=np.float64)
    if str(file.get("PhotometricInterpretation", "")) == "MONOCHROME1":
        values = -values
    low, high = values.min(), values.max()
    scaled: NDArray[np.uint8] = np.round((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return scaled
