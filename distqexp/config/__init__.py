"""The configuration of a run: TOML files read into frozen dataclasses."""

from __future__ import annotations

from distqexp.config.data import ARRAY_FORMATS, CLINICAL_FORMATS, FOLDER_FORMATS, NewRecords
from distqexp.config.reading import config_from_tree, load_config
from distqexp.config.sections import (
    AllDataConfig,
    AugmentConfig,
    ColumnsConfig,
    Config,
    DataConfig,
    DiagnosticsConfig,
    EngineConfig,
    MechanismConfig,
    ModelConfig,
    OutputConfig,
    PrecisionConfig,
    PretrainConfig,
    PrivacyConfig,
    SubspaceConfig,
    TuneConfig,
)
from distqexp.config.table import config_table
from distqexp.config.trees import config_to_tree, differences, without_paths

__all__ = [
    "ARRAY_FORMATS",
    "CLINICAL_FORMATS",
    "FOLDER_FORMATS",
    "AllDataConfig",
    "AugmentConfig",
    "ColumnsConfig",
    "Config",
    "DataConfig",
    "DiagnosticsConfig",
    "EngineConfig",
    "MechanismConfig",
    "ModelConfig",
    "NewRecords",
    "OutputConfig",
    "PrecisionConfig",
    "PretrainConfig",
    "PrivacyConfig",
    "SubspaceConfig",
    "TuneConfig",
    "config_from_tree",
    "config_table",
    "config_to_tree",
    "differences",
    "load_config",
    "without_paths",
]
