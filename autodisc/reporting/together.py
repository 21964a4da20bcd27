"""Several Optuna storages as one, so that one dashboard compares the studies of several folders while they run.

Ids are made unique (id · n + k for the k-th of n storages), and a name that two storages use tells its folder. Nothing
is copied: each call goes to the storage that holds the study, so what runs is seen as it runs, and a note that is
edited in the dashboard lands in its own study.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

# optuna-dashboard keeps a trial's note in its study, under the trial's id.
_OF_TRIAL = re.compile(r"^(dashboard:(?:artifacts:)?)(\d+)(?=:)")


class Together(BaseStorage):
    """``storages``, each after the name that tells its studies from others of their name."""

    def __init__(self, storages: Sequence[tuple[str, BaseStorage]]) -> None:
        self._names, self._storages = [name for name, _ in storages], [storage for _, storage in storages]

    def _of(self, outer: int) -> tuple[BaseStorage, int]:
        inner, number = divmod(outer, len(self._storages))
        return self._storages[number], inner

    def _outer(self, inner: int, storage: BaseStorage) -> int:
        return inner * len(self._storages) + self._storages.index(storage)

    def get_all_studies(self) -> list[FrozenStudy]:
        found = [[copy.copy(study) for study in storage.get_all_studies()] for storage in self._storages]
        names = [study.study_name for studies in found for study in studies]
        for name, storage, studies in zip(self._names, self._storages, found, strict=True):
            for study in studies:
                study._study_id = self._outer(study._study_id, storage)
                study.system_attrs = self._keys(study.system_attrs, partial(self._outer, storage=storage))
                if names.count(study.study_name) > 1:
                    study.study_name = f"{study.study_name} ({name})"
        return [study for studies in found for study in studies]

    def get_study_id_from_name(self, study_name: str) -> int:
        for study in self.get_all_studies():
            if study.study_name == study_name:
                return study._study_id
        raise KeyError(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return next(study.study_name for study in self.get_all_studies() if study._study_id == study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        storage, inner = self._of(study_id)
        return storage.get_study_directions(inner)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        storage, inner = self._of(study_id)
        return storage.get_study_user_attrs(inner)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        storage, inner = self._of(study_id)
        return self._keys(storage.get_study_system_attrs(inner), lambda i: self._outer(i, storage))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        storage, inner = self._of(study_id)
        storage.set_study_user_attr(inner, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        storage, inner = self._of(study_id)
        (key,) = self._keys({key: value}, lambda i: self._of(i)[1])
        storage.set_study_system_attr(inner, key, value)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return self._outer(self._storages[0].create_new_study(directions, study_name), self._storages[0])

    def delete_study(self, study_id: int) -> None:
        storage, inner = self._of(study_id)
        storage.delete_study(inner)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        storage, inner = self._of(trial_id)
        return self._seen(storage.get_trial(inner), storage)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        storage, inner = self._of(study_id)
        return [self._seen(trial, storage) for trial in storage.get_all_trials(inner, deepcopy, states)]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        storage, inner = self._of(study_id)
        return self._outer(storage.create_new_trial(inner, template_trial), storage)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        storage, inner = self._of(trial_id)
        storage.set_trial_param(inner, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        storage, inner = self._of(trial_id)
        return storage.set_trial_state_values(inner, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        storage, inner = self._of(trial_id)
        storage.set_trial_intermediate_value(inner, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        storage, inner = self._of(trial_id)
        storage.set_trial_user_attr(inner, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        storage, inner = self._of(trial_id)
        storage.set_trial_system_attr(inner, key, value)

    def _seen(self, trial: FrozenTrial, storage: BaseStorage) -> FrozenTrial:
        seen = copy.copy(trial)
        seen._trial_id = self._outer(trial._trial_id, storage)
        return seen

    @staticmethod
    def _keys(attributes: Mapping[str, Any], turned: Callable[[int], int]) -> dict[str, Any]:
        """Attributes whose keys hold a trial's id, with the other side's id."""
        return {_OF_TRIAL.sub(lambda m: f"{m[1]}{turned(int(m[2]))}", key): value for key, value in attributes.items()}


class Stores:
    """The artifacts of several folders: an id is a UUID, so the first that has it is the one."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [folder.resolve() for folder in folders]

    def open_reader(self, artifact_id: str) -> BinaryIO:
        for folder in self._folders:
            if folder.is_dir():  # one of a study that has just begun may come later
                try:
                    return FileSystemArtifactStore(folder).open_reader(artifact_id)
                except ArtifactNotFound:
                    continue
        raise ArtifactNotFound(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        self._folders[0].mkdir(parents=True, exist_ok=True)
        FileSystemArtifactStore(self._folders[0]).write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        for folder in self._folders:
            if (folder / artifact_id).is_file():
                FileSystemArtifactStore(folder).remove(artifact_id)
