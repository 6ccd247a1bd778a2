"""The stage `augment` of the pipeline, and the verb `verify`."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from kp_ray.cluster.placement import AUGMENT_LABEL, augment_nodes
from kp_ray.cluster.resources import require_cpus
from kp_ray.config.schema import Config
from kp_ray.stage import Progress, check_inputs
from kp_ray.storage import exists, join
from kp_ray.store.augment_record import AUGMENT_RECORD_NAME, AugmentRecord, write_augment_record
from kp_ray.store.estimate import AugmentForecast, forecast_augment
from kp_ray.store.layout import QUARANTINE_NAME
from kp_ray.store.manifest import Quarantined, read_manifest
from kp_ray.store.plan import Plan, make_plan
from kp_ray.store.preflight import check_plan, refuse_empty_recipes
from kp_ray.store.verify import verify_store
from kp_ray.store.write import is_finished, replaces_store, write_store


@dataclass(frozen=True)
class AugmentSummary(AugmentRecord):
    """The result of `augment`.

    Attributes:
        store: local path or URL of the store.
        first_quarantined: an example of the quarantined sources; None if no source was quarantined.
    """

    store: str
    first_quarantined: Quarantined | None

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        lines = [
            f"{self.variants} variants of {self.sources} sources in {self.store}: "
            f"{self.parts_written} parts written, {self.parts_kept} kept, {self.sources_per_s:.1f} sources/s"
        ]
        if self.first_quarantined:
            lines.append(
                f"{self.quarantined} sources lack at least one variant, e.g. "
                f"{self.first_quarantined.source}: {self.first_quarantined.reason}; all are listed in "
                f"{join(self.store, QUARANTINE_NAME)}"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return {field.name: getattr(self, field.name) for field in fields(AugmentRecord)}


class AugmentStage:
    """Writes the store: every variant of every source, as Parquet.

    Attributes:
        session_start_up_s: seconds that Ray took to start. The caller sets this value, and `run` adds it to the record.
    """

    name = "augment"
    needs_cluster = True
    needs_dashboard = False

    def __init__(self) -> None:
        self.session_start_up_s = 0.0
        self._cached_plan: tuple[Config, Plan] | None = None

    def applies(self, config: Config) -> bool:
        """Return True, because every run of the pipeline needs a store."""
        return True

    def check(self, config: Config) -> None:
        """Check that the input files exist, and that the labels, images, split and recipes can be used.

        Raises:
            KpRayError: an input is missing or cannot be used.
        """
        check_inputs(config, required=("annotations", "images"), optional=("corrections",))
        check_plan(self._plan(config))

    def is_done(self, config: Config) -> bool:
        """Return whether the store is complete.

        Raises:
            StoreError: the manifest is damaged, another version of kp_ray wrote it, or the image file of a stored
                source is missing.
        """
        return is_finished(self._plan(config))

    def replaces_store(self, config: Config) -> bool:
        """Return whether `run` replaces a finished store, so that its members and searches cannot continue.

        Raises:
            StoreError: the manifest is damaged, or another version of kp_ray wrote it.
        """
        return replaces_store(self._plan(config))

    def run(self, config: Config, progress: Progress) -> AugmentSummary:
        """Write the store's missing parts, then `augment.json` if it does not exist or a part was written.

        `config.yaml` is written only when the writer lock is held, so that a refused second writer does not replace it.

        Raises:
            ClusterError: no node has a CPU for `augment`.
            KpRayError: see `write_store`.
        """
        if not self.is_done(config):
            require_cpus(config.cluster, augment_nodes(), label=AUGMENT_LABEL, num_cpus=1, purpose="augment")
        record = write_store(self._plan(config), lambda done, total: progress("", done, total), config.save)
        record = replace(
            record,
            seconds=round(record.seconds + self.session_start_up_s, 3),
            start_up_s=round(record.start_up_s + self.session_start_up_s, 3),
        )
        if record.parts_written or not exists(config.path(AUGMENT_RECORD_NAME)):
            write_augment_record(config, record)
        store = config.path("store")
        manifest = read_manifest(store)
        refuse_empty_recipes(manifest)
        first_quarantined = manifest.quarantined[0] if record.quarantined else None
        return AugmentSummary(**asdict(record), store=store, first_quarantined=first_quarantined)

    def forecast(self, config: Config) -> AugmentForecast:
        """Estimate the store's size and duration from a few of its sources.

        Raises:
            KpRayError: an input is missing or cannot be used.
        """
        return forecast_augment(self._plan(config), config)

    def _plan(self, config: Config) -> Plan:
        """Plan the store, only once per config, because reading the labels and listing the images can take seconds."""
        if self._cached_plan is None or self._cached_plan[0] != config:
            self._cached_plan = config, make_plan(config)
        return self._cached_plan[1]


@dataclass(frozen=True)
class VerifySummary:
    """The result of `verify`.

    Attributes:
        store: local path or URL of the store.
        problems: one line per problem.
    """

    store: str
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if no problem was found."""
        return not self.problems

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        return [*self.problems] or [f"{self.store} is sound"]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return {"problems": [*self.problems]}


def verify(config: Config) -> VerifySummary:
    """Compare a store's parts with the manifest and a sample of its rows with the sources; delete damaged parts.

    Raises:
        KpRayError: an input is missing or cannot be used, or there is no finished store.
    """
    check_inputs(config, required=("annotations", "images"), optional=("corrections",))
    return VerifySummary(config.path("store"), tuple(verify_store(make_plan(config))))
