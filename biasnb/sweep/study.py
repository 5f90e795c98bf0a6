"""The experiment of a notebook, which combines factors and their levels into a list of runs, and the runs into a sweep."""

from dataclasses import dataclass, replace
from itertools import product

import pandas as pd

from ..config import Config, ConfigError, check_names, check_profile, check_settings, fields_of, full_path, short
from ..operators import MIXERS
from ..records import keys
from ..records.store import Store, Sweep, shown
from . import manifest


class Study:
    """The settings that all runs of a notebook share, and the factors that it varies.

    `name` is the file name of the notebook without suffix. `settings` are Config fields that replace those of the profile; with
    lr "tuned", the learning rate of every run comes from the searches of `biasnb tune`. `base` is the section of the profile
    from which the runs start: "study", or "trio" for the longer runs. `factors` are lists of levels. None stands for the
    setting of that name, if given, and otherwise for the levels of the profile. A factor with one level applies to all runs.

    Raises ConfigError for an unknown profile or setting, and for levels that are no list, are empty or contain duplicates."""

    def __init__(self, name, profile, settings=None, base="study", **factors):
        self.name, self.profile, self.settings = name, profile, check_settings(settings)
        check_names(self.settings, fields_of(), "setting")
        check_names(factors, [*fields_of(), *manifest.default_levels(name)], "factor")
        check_names({base: base}, ("study", "trio"), "base of a study")
        manifest.check_injected(name)
        for field, value in self.settings.items():
            if isinstance(value, list | tuple):
                raise ConfigError(
                    f"settings: {field}: {short(value)} is a list, but this notebook varies only {', '.join(factors)}"
                )
        sizes = check_profile(profile)
        self.fields, self.profile_levels = dict(sizes["config"]), {}
        for table in (sizes["levels"], sizes[base], sizes["levels"].get(name, {})):
            for field, value in table.items():
                if isinstance(value, list):
                    self.profile_levels[field] = value
                elif not isinstance(value, dict):
                    self.fields[field] = value
        self.fields |= self.settings
        self.tuned = self.fields.get("lr") == "tuned"
        if self.tuned:
            del self.fields["lr"]
        self.levels = {factor: self._levels(factor, given) for factor, given in factors.items()}
        self.fields |= {factor: found[0] for factor, found in self.levels.items() if len(found) == 1 and factor in fields_of()}

    def _levels(self, factor, given):
        fixed, from_profile = [self.settings[factor]] if factor in self.settings else None, given is None
        if from_profile:
            given = fixed or self.profile_levels.get(factor)
            if given is None:
                raise ConfigError(f"{factor}: profile {self.profile!r} has no levels of it; give a list")
        if not isinstance(given, list | tuple):
            raise ConfigError(f"{factor}: {short(given)} is not a list of levels; give e.g. [{short(given)}]")
        if fixed and list(given) != fixed:
            raise ConfigError(f"settings: {factor} is a factor of this notebook; give its levels there, not in settings")
        # A list of the profile, or one that is not of Config values, e.g. controls, may be empty.
        empty = not given and not from_profile and manifest.field_of(factor)
        if empty or any(value in given[:i] for i, value in enumerate(given)):
            raise ConfigError(f"{factor}: {short(given)} is empty or names a level twice; list each level once")
        return list(given)

    def setting(self, field):
        """Return the value of a Config field in all runs that do not vary it."""
        return self.fields.get(field, Config.__dataclass_fields__[field].default)

    def every_combination(self, *factors, **levels):
        """Return a Config for every combination of the levels of these factors and of further fields given with their levels.
        The last one varies fastest."""
        check_names({factor: factor for factor in factors}, self.levels, "factor of this study")
        varied = {**{factor: self.levels[factor] for factor in factors}, **levels}
        points = product(*varied.values())
        return [Config(**{**self.fields, **dict(zip(varied, point, strict=True))}) for point in points]

    def one_factor_at_a_time(self, *factors, over=("seed", "mixer")):
        """Return the Configs of the base point and of every level of each factor, with the other factors at their base level,
        for every combination of the factors in `over`."""
        *outer, last = over
        runs = self.every_combination(*over)
        for factor in factors:
            runs += self.every_combination(*outer, factor, last)
        return list(dict.fromkeys(runs))

    def with_positions(self, runs):
        """Return the runs with position embeddings that match the constraint of their operator, unless `settings` has a
        position: none if A depends on offsets only, and absolute ones otherwise, for static and dynamic operators alike, so
        that input dependence is not confounded with positions. Operators with content-based queries and no position table
        (hyena, attention with local heads) also get absolute positions."""
        if "position" in self.settings:
            return runs
        found = []
        for cfg in runs:
            operator = MIXERS[cfg.mixer]
            absolute = not operator.shared or (operator.dynamic and not operator.biased)
            found.append(replace(cfg, position="learned" if absolute else "none"))
        return found

    def plan(self, runs, weights=False):
        """Return the sweep of these runs, without training or writing. Saved records are those of the user and of results/;
        with `weights`, only those of the user, because weights are not committed. Raises ConfigError for a learning rate that
        has not been searched."""
        with keys.snapshot():
            store = Store(self.profile) if weights else shown(self.profile)
            runs = self._searched(runs, store) if self.tuned else runs
            configs = list({keys.key(cfg): cfg for cfg in runs}.values())
            changed = self._changed()
            data = configs[0].dataset if configs else self.setting("dataset")
            if data == "folder":
                folder = configs[0].data_dir if configs else self.setting("data_dir")
                data = full_path(folder).name
                changed |= {"dataset": data, "files": keys.folder_signature(folder)}
            if defined := {cfg.mixer: digest for cfg in configs if (digest := keys.user_digest(cfg.mixer))}:
                changed["user_defined"] = defined
            words = [self.name, data, keys.digest(changed, 6)] if changed else [self.name]
            searched = {keys.search_key(cfg) for cfg in configs if cfg.pretext != "none"} if self.tuned else ()
            content = {
                "notebook": self.name,
                "profile": self.profile,
                "data": data,
                "changed": changed,
                "searches": sorted(searched),
                "runs": [asked_of(cfg) for cfg in configs],
                **manifest.shown(self.name),
            }
        return Planned(store, "-".join(words), content, tuple(configs))

    def _changed(self):
        """Return the settings, and the levels of factors that differ from those in the saved notebook."""
        defaults = manifest.default_levels(self.name)
        changed = {field: value for field, value in self.settings.items() if field not in ("data_dir", "device")}
        for factor, levels in self.levels.items():
            usual = self.profile_levels.get(factor) if defaults.get(factor) is None else defaults[factor]
            if factor in defaults and factor not in self.settings and levels != usual:
                changed[factor] = levels
        return changed

    def _searched(self, runs, store):
        """Return the runs with the learning rates that were chosen by searches."""
        found = []
        for cfg in runs:
            if cfg.pretext != "none" and not store.has(keys.search_key(cfg)):
                raise ConfigError(
                    f"lr: 'tuned', but mixer {cfg.mixer!r} has no searched rate; run `biasnb tune {self.name}` first"
                )
            found.append(cfg if cfg.pretext == "none" else replace(cfg, lr=store.load(keys.search_key(cfg))["chosen"]))
        return found


def asked_of(cfg):
    """Return the entry of a run in a sweep: the keys of its records and its key fields."""
    return {"key": keys.key(cfg), "baseline": keys.baseline_key(cfg), "init": keys.init_key(cfg), **keys.key_fields(cfg)}


@dataclass(frozen=True)
class Planned(Sweep):
    """A sweep whose runs can be trained."""

    configs: tuple = ()

    def overview(self):
        """Return a table of the factors, their levels and the saved runs per level, whose caption has the shared settings."""
        rows = []
        for factor in dict.fromkeys(["mixer", *self.factors(), "seed"]):
            counts = {}
            for run in self.runs:
                saved, asked = counts.get(run.get(factor), (0, 0))
                counts[run.get(factor)] = saved + self.store.has(run["key"]), asked + 1
            levels = {level: count for level, count in counts.items() if level is not None}
            rows.append(
                {
                    "factor": factor,
                    "levels": ", ".join(map(str, levels)),
                    "saved runs": ", ".join(f"{saved} of {asked}" for saved, asked in levels.values()),
                }
            )
        saved = sum(self.store.has(run["key"]) for run in self.runs)
        table = pd.DataFrame(rows).style.hide(axis="index")
        runs = f"{len(self.runs)} run" + "s" * (len(self.runs) != 1)
        settings = f"{self.caption()}; " if self.runs else ""
        return table.set_caption(f"{settings}{runs}: {saved} saved, {len(self.runs) - saved} missing")

    def train(self):
        """Train the missing runs, and save the sweep in runs/<profile>. Saved runs are not repeated, and interrupted runs
        resume. Raises BiasnbError naming the runs that failed."""
        from . import executor

        self.save()
        if self.missing():
            executor.train(self.configs, self.store)


def images_of(folder, settings=None):
    """Return the settings for a folder of images, all labelled, or none if `folder` is "", together with `settings`."""
    images = {"dataset": "folder", "data_dir": str(full_path(folder)), "labelled": 0} if folder else {}
    return {**images, **check_settings(settings)}
