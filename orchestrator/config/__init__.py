"""What a cycle is told: one typed TOML file. Unknown keys are errors; the whole is stored on the cycle.

Where things run is in `orchestrator/settings.py` and never here. A relative path is taken from the file's folder, and
`$VARIABLES` in paths are expanded. Begin with `cycle.py`, which holds the whole.
"""

from orchestrator.config.base import Section, told, values_of
from orchestrator.config.cycle import (
    ApprovalSection,
    CycleConfig,
    CycleSection,
    EvaluationSection,
    GatesSection,
    OodSection,
    ScheduleSection,
    ServingSection,
)
from orchestrator.config.initial_policy import DistillSection, InitialPolicySection, PretrainSection
from orchestrator.config.policy import PPOSection, PromptsSection
from orchestrator.config.preference import (
    ComparisonsSection,
    OrientationSection,
    PMPSection,
    PreferenceModelSection,
    ReferenceSection,
    SkillSection,
)
from orchestrator.config.reading import load_config, parse_config

__all__ = [
    "ApprovalSection", "ComparisonsSection", "CycleConfig", "CycleSection", "DistillSection", "EvaluationSection",
    "GatesSection", "InitialPolicySection", "OodSection", "OrientationSection", "PMPSection", "PPOSection",
    "PreferenceModelSection", "PretrainSection", "PromptsSection", "ReferenceSection", "ScheduleSection", "Section",
    "ServingSection", "SkillSection", "load_config", "parse_config", "told", "values_of",
]  # fmt: skip
