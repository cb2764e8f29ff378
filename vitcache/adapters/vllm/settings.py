"""`Settings`: sizes, row width and namespace of vitcache in vLLM, read from vLLM's configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vitcache.adapters.vllm.row_width import default_row_width
from vitcache.adapters.vllm.start_up import check_deployment, option_name
from vitcache.adapters.vllm.tier_settings import FETCH_BYTES, TIER_OPTIONS, TierSettings, read_tiers
from vitcache.arguments import check_bool, to_bytes, to_int
from vitcache.cache.call_arguments import to_row_width
from vitcache.keys.namespace import Namespace
from vitcache.rows import DTYPE_NAMES, DTYPES

OPTIONS = (
    "device_bytes",
    "host_bytes",
    "page_rows",
    "row_width",
    "accept_embeds",
    "place_rows",
    *TIER_OPTIONS,
)  # of ec_connector_extra_config
PAGE_ROWS = 16
SPARE = 16  # of this number of device pages, one stays free


@dataclass(frozen=True)
class Settings:
    """The settings of vitcache in one instance of vLLM: the scheduler and every worker read equal ones.

    Attributes
    ----------
    device_bytes, host_bytes
        Sizes of the tiers of each worker. A host tier of 0 bytes does not exist.
    page_rows, row_width, dtype
        Layout of a page: rows, elements of a row, and their dtype.
    namespace
        32 bytes that name the model, its revision and the options that its encoder's output depends on.
    place_rows
        Whether vitcache places rows in `inputs_embeds`, in Model Runner V2. If not, vLLM's merge does.
    widths
        Measured width of the rows of each modality. Empty until vLLM has measured them, and on workers.
    tiers
        The tiers below the host tier; None: without such tiers.

    Examples
    --------
    >>> from types import SimpleNamespace as NS
    >>> import torch
    >>> text = NS(hidden_size=64)
    >>> model = NS(model="m", revision=None, dtype=torch.bfloat16, hf_text_config=text, hf_config=NS())
    >>> options = {"device_bytes": "1MiB", "host_bytes": "4MiB"}
    >>> transfer = NS(ec_role="ec_both", ec_connector_extra_config=options)
    >>> settings = Settings.from_config(NS(ec_transfer_config=transfer, model_config=model))
    >>> settings.device_pages, settings.host_pages, settings.pages_for(100)
    (512, 2048, 7)

    Notes
    -----
    Immutable: any thread may use it.
    """

    device_bytes: int
    host_bytes: int
    page_rows: int
    row_width: int
    dtype: torch.dtype
    namespace: bytes
    place_rows: bool = True
    widths: Mapping[str, int] = field(default_factory=dict)
    tiers: TierSettings | None = None

    @classmethod
    def from_config(cls, vllm_config: Any) -> Settings:
        """Read and check vLLM's configuration.

        Parameters
        ----------
        vllm_config
            vLLM's `VllmConfig`.

        Raises
        ------
        ValueError
            If an option is unknown, missing or too small, the measured width of a modality does not divide
            `row_width`, or vitcache cannot serve this instance (`check_deployment`).
        TypeError
            If an option has the wrong type, or the dtype of the model is not float32, float16 or bfloat16.
        """
        check_deployment(vllm_config)
        transfer, model_config = vllm_config.ec_transfer_config, vllm_config.model_config
        options = transfer.ec_connector_extra_config
        _check_names(options)
        accepts_embeds(vllm_config)
        if model_config.dtype not in DTYPES:
            raise TypeError(f"the model's dtype is {model_config.dtype}, it must be one of {DTYPE_NAMES}")
        page_rows = to_int(option_name("page_rows"), options.get("page_rows", PAGE_ROWS), 1)
        row_width = options.get("row_width")
        row_width = default_row_width(model_config) if row_width is None else row_width
        row_width = to_int(option_name("row_width"), row_width, 1)
        settings = cls(
            device_bytes=to_bytes(option_name("device_bytes"), options["device_bytes"], 0),
            host_bytes=to_bytes(option_name("host_bytes"), options.get("host_bytes", 0), 0),
            page_rows=page_rows,
            row_width=row_width,
            dtype=model_config.dtype,
            namespace=_namespace(model_config),
            place_rows=_flag(options, "place_rows", True),
            widths=dict(getattr(transfer, "mm_encoder_output_widths", None) or {}),
            tiers=read_tiers(options, vllm_config),
        )
        settings._check_sizes()
        settings._check_widths()
        return settings

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.page_rows * self.row_width * self.dtype.itemsize

    @property
    def device_pages(self) -> int:
        """Pages of the device tier of each worker."""
        return self.device_bytes // self.page_bytes

    @property
    def shown_pages(self) -> int:
        """Device pages that vLLM's encoder cache may show: all but one in `SPARE`.

        With free pages, a new entry nearly always finds adjacent ones. Without, half of the entries of 40 to
        70 pages in a tier of 4096 pages need a compaction (tests/adapters/vllm/test_device_rows.py).
        """
        return self.device_pages - self.device_pages // SPARE

    def device_bytes_to_show(self, num_pages: int) -> int:
        """Return a size of the device tier that is sufficient for `num_pages` shown pages."""
        return -(-num_pages * SPARE // (SPARE - 1)) * self.page_bytes

    @property
    def host_pages(self) -> int:
        """Pages of the host tier of each worker."""
        return self.host_bytes // self.page_bytes

    @property
    def fetch_pages(self) -> int:
        """Host pages beside the host tier for rows that are being read from lower tiers; 0 without any."""
        return 0 if self.tiers is None else min(FETCH_BYTES, self.host_bytes) // self.page_bytes

    def pages_for(self, num_rows: int, width: int | None = None) -> int:
        """Return how many pages an entry of `num_rows` rows occupies, as `EmbeddingCache.pages_for`.

        Raises
        ------
        ValueError
            If `num_rows` is negative, or `width` does not divide `row_width`.
        TypeError
            If a number is not an int.
        """
        page_rows = self.page_rows * (self.row_width // to_row_width("width", width, self.row_width))
        return max(1, -(-to_int("num_rows", num_rows, 0) // page_rows))

    def width_of(self, modality: str) -> int:
        """Return the measured width of the rows of a modality, or `row_width` if it was not measured."""
        return self.widths.get(modality, self.row_width)

    def _check_sizes(self) -> None:
        for name, size in (("device_bytes", self.device_bytes), ("host_bytes", self.host_bytes)):
            if size < self.page_bytes and (size or name == "device_bytes"):
                raise ValueError(
                    f"{option_name(name)} is {size}, it must be at least {self.page_bytes}: one page of "
                    f"{self.page_rows} rows of {self.row_width} elements of {self.dtype}"
                )

    def _check_widths(self) -> None:
        for modality, width in self.widths.items():
            if width < 1 or self.row_width % width:
                multiple = math.lcm(*self.widths.values())
                raise ValueError(
                    f"the encoder's rows of modality {modality!r} have width {width}, which does not divide "
                    f"row_width, {self.row_width}: set row_width in ec_connector_extra_config to {multiple}"
                )


def accepts_embeds(vllm_config: Any) -> bool:
    """Whether requests may carry embeddings in place of images: the option `accept_embeds`, by default False.

    Raises
    ------
    TypeError
        If the option is not a bool.
    """
    return _flag(vllm_config.ec_transfer_config.ec_connector_extra_config, "accept_embeds", False)


def _flag(options: Mapping[str, Any], name: str, default: bool) -> bool:
    value: bool = options.get(name, default)
    check_bool(option_name(name), value)
    return value


def _check_names(options: Any) -> None:
    if not isinstance(options, Mapping):
        raise TypeError(f"ec_connector_extra_config must be a dict, got {type(options).__name__}")
    unknown = sorted(map(str, options.keys() - set(OPTIONS)))
    if unknown:
        raise ValueError(
            f"ec_connector_extra_config has the unknown options {', '.join(unknown)}; known options: "
            f"{', '.join(OPTIONS)}"
        )
    if "device_bytes" not in options:
        raise ValueError(
            f"{option_name('device_bytes')} is missing: the size of the device tier, such as '2GiB'"
        )


def _namespace(model_config: Any) -> bytes:
    """Name the model and the options that the output of its encoder depends on."""
    multimodal = getattr(model_config, "multimodal_config", None)
    names = ("mm_encoder_attn_backend", "mm_encoder_attn_dtype", "video_pruning_method", "video_pruning_rate")
    options = {name: str(getattr(multimodal, name, None)) for name in names}
    options["quantization"] = str(getattr(model_config, "quantization", None))
    return Namespace(
        str(model_config.model),
        revision=str(model_config.revision or ""),
        processor=str(sorted(options.items())),
        dtype=str(model_config.dtype),
    ).digest()
