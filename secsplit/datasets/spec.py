"""The ``[data]`` table of a run file: which records, which columns of them, how they are shared among clients."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DataSpec(BaseModel):
    """Which data set to load and what of it each column holds.

    ``modalities`` names the input columns and says what each holds: of an image ``all``, ``left``, ``right``, ``top``,
    ``bottom``, ``top-left`` (and the other quarters), ``rows 0:14`` or ``columns 0:14``; of a table ``all``, feature
    names or patterns (``mean *, worst radius``) or a range of positions (``0:10``). ``labels`` names the label columns:
    a label of the source (``y`` is its main one), a feature of a table (then it is predicted, and withdrawn from the
    inputs), or a group of classes against the rest (``y in 5,7,9``).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "digits"
    path: Path | None = None
    download: bool = False  # let torchvision fetch what is not found; nothing is ever fetched unasked
    modalities: dict[str, str] = Field(default={"x": "all"}, min_length=1)
    labels: dict[str, str] = Field(default={"y": "y"})
    label: str | None = None  # of a file: its label column
    id: str | None = None  # of a file: the column that names the record; hashed under id_key, never kept
    id_key: Path | None = None
    common: Path | None = None  # a list of ids (`secsplit data common`); records of others are left out
    table: Path | None = None  # of a folder: a table that names each image and its label
    masks: Path | None = None  # of a folder: another, of masks by the same names; they become the label "mask"
    size: int = Field(default=64, ge=4, le=1024)  # of a folder: images are resized to size x size pixels
    channels: Literal[1, 3] = 1
    allow_burned_in: bool = False  # DICOM files that say that text is burned into their pixels
    positive: int | None = Field(default=None, ge=0)  # make y binary: this class against the rest
    positive_fraction: float | None = Field(default=None, gt=0, lt=1)  # drop records until so many are of class 1
    labelled_fraction: float = Field(default=1.0, gt=0, le=1)  # the other records to train on lose their labels
    limit: int | None = Field(default=None, ge=1)  # at most so many records to train on, chosen by the seed
    limit_test: int | None = Field(default=None, ge=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)  # only where the source has no test set of its own
    seed: int = Field(default=0, ge=0)
    partition: Literal["iid", "dirichlet"] = "iid"
    alpha: float = Field(default=0.5, gt=0)
    weights: tuple[float, ...] | None = None  # relative sizes of the clients' shards; equal when absent

    @model_validator(mode="after")
    def _weights_are_positive(self) -> Self:
        if self.weights is not None and any(weight <= 0 for weight in self.weights):
            raise ValueError("weights: expected positive numbers, one for each client")
        return self
