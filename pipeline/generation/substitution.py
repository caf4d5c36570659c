"""Candidate crystals by ion substitution: real prototypes, likely ions, neutral charge, rescaled volume.

A prototype is given oxidation states, one ion for each element. Its ions are replaced by others with the probabilities
that Hautier, Fischer, Ehrlacher, Jain and Ceder mined from the ICSD (Inorg. Chem. 50, 656 (2011)), as pymatgen ships
them. Only what is neutral again, and keeps different elements different, becomes a candidate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import count as count_up

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ..errors import ConfigError, SourceError
from ..structures.structure import Structure
from .ions import guess_ions, ion_table

# Substitutions less likely than this are left out. pymatgen's own predictor stops at 1e-3, which leaves about 40 for
# each prototype; 1e-4 leaves about 200, so that more of a large set is new chemistry and less of it strained copies.
MIN_PROBABILITY = 1e-4
LEAST_PROBABILITY = 1e-6  # below, the list of likely substitutions of one prototype takes gigabytes
# Copies, made when all substitutions are used up.
MAX_STRAIN = 0.03
RATTLE = 0.05  # angstrom
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """A crystal that may exist.

    Attributes:
        structure: Sites in the order of the prototype's.
        name: The prototype's name and the number of the candidate, unique among those of one call.
        prototype: Name of the prototype.
        probability: Product over the prototype's ions of the conditional probability p(new ion | old ion) of Hautier
            et al., an ion that stays included; not normalised over the neutral substitutions.
        substitutions: (old ion, new ion) for each element of the prototype, as pymatgen writes ions: ("Ti4+", "Zr4+").
        copy: 0 for the substitution itself, n for its n-th strained and rattled copy.
    """

    structure: Structure
    name: str
    prototype: str
    probability: float
    substitutions: tuple[tuple[str, str], ...]
    copy: int


@dataclass(frozen=True, slots=True)
class _Host:
    """A prototype with oxidation states.

    Attributes:
        name, structure: As given.
        ions: Index into the ion table for each element, by atomic number.
        amounts: Of each ion in the reduced formula.
        site: int64[n_atoms], which of the ions stands there.
    """

    name: str
    structure: Structure
    ions: tuple[int, ...]
    amounts: tuple[int, ...]
    site: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SubstitutionPlan:
    """All likely substitutions, in the order in which they are drawn.

    Attributes:
        read: Prototypes that were looked at.
        hosts: Those with oxidation states.
        host: int32[n], prototype of each substitution.
        ions: int16[n, widest], its new ions; -1 behind the last.
        probability: float64[n].
        scale: float64[n], factor for the lattice vectors.
    """

    read: int
    hosts: list[_Host]
    host: NDArray[np.int32]
    ions: NDArray[np.int16]
    probability: NDArray[np.float64]
    scale: NDArray[np.float64]


def substitute(
    prototypes: Iterable[tuple[str, Structure]],
    count: int,
    *,
    seed: int = 0,
    elements: Collection[str] | None = None,
    max_atoms: int | None = None,
    min_probability: float = MIN_PROBABILITY,
    max_strain: float = MAX_STRAIN,
    rattle: float = RATTLE,
) -> Iterator[Candidate]:
    """Make candidates by ion substitution.

    All likely substitutions of all prototypes are drawn without replacement, each with a chance in proportion to its
    probability: the likelier, the earlier. The cell is scaled so that

        V_new / V_old = (sum_i n_i r(new ion i) / sum_i n_i r(old ion i))^3

    with Shannon's ionic radii r, as in pymatgen's `RLSVolumePredictor`. Of several formulas (ionic, covalent or atomic
    radii; sums of radii, sums of cubes, closest contact) this one came closest to real isostructural crystals.

    When all are used up, the same substitutions come again and again with random isotropic strains and displacements.
    No two candidates, and no candidate and prototype, have the same content hash. Fewer candidates of the same
    prototypes, seed and settings are the first of more. Nothing looks for crystals that would relax to the same one:
    two prototypes of one structure type give the same compounds, in cells of nearly the same size.

    Prototypes are left out that are not periodic in three directions, have more than `max_atoms` atoms, or whose most
    likely oxidation states (pymatgen's `Composition.oxi_state_guesses`) are not one whole number for each element, or
    not in the table: it knows the anions of N, O, F, S, Cl, Se, Br and I.

    Args:
        prototypes: Name and structure of each; all are read before the first candidate comes.
        count: How many candidates.
        seed: Not negative.
        elements: Symbols of the elements that a candidate may have; None allows all.
        max_atoms: Largest number of atoms in a cell.
        min_probability: See `Candidate.probability`; less likely substitutions are left out.
        max_strain: Of copies: lattice vectors are scaled by 1 + e with e uniform within so much of 0.
        rattle: Of copies: standard deviation of the displacement along each axis, angstrom.

    Returns:
        An iterator over exactly `count` candidates, each made when it is asked for.

    Raises:
        SourceError: No prototype can be given oxidation states, or none of them has a likely substitution. While
            iterating: nothing new is left, as copies are neither strained nor rattled.
        ConfigError: A setting is out of range, or an element unknown.
    """
    if not (0 <= max_strain <= 0.5 and rattle >= 0):
        raise ConfigError(f"a strain of {max_strain} and a rattle of {rattle} angstrom; say 0 to 0.5, and 0 or more")
    plan = plan_substitutions(prototypes, count, seed, elements, max_atoms, min_probability)
    return draw_candidates(plan, count, seed, max_strain, rattle)


def _host(name: str, structure: Structure) -> _Host | None:
    """Give a prototype oxidation states, if it can have any."""
    if not structure.pbc.all():
        return None
    numbers, site, amounts = np.unique(structure.atomic_number, return_inverse=True, return_counts=True)
    reduced = tuple((amounts // np.gcd.reduce(amounts)).tolist())
    ions = guess_ions(tuple(zip(numbers.tolist(), reduced, strict=True)))
    return None if ions is None else _Host(name, structure, ions, reduced, site.reshape(-1).astype(np.int64))


def plan_substitutions(
    prototypes: Iterable[tuple[str, Structure]],
    count: int,
    seed: int,
    elements: Collection[str] | None,
    max_atoms: int | None,
    min_probability: float,
) -> SubstitutionPlan:
    """Find all likely substitutions of all prototypes and draw their order; see `substitute`."""
    if count < 0 or seed < 0:
        raise ConfigError(f"{count} candidates with seed {seed}: neither can be negative")
    if not LEAST_PROBABILITY <= min_probability < 1:
        raise ConfigError(f"a least probability of {min_probability}; say one from {LEAST_PROBABILITY} to below 1")
    allowed = _allowed_ions(elements)
    read, hosts = 0, []
    for name, structure in prototypes:
        read += 1
        host = _host(name, structure) if max_atoms is None or len(structure) <= max_atoms else None
        if host is not None:
            hosts.append(host)
    if not hosts:
        within = "" if max_atoms is None else f" of at most {max_atoms} atoms"
        raise SourceError(
            f"none of {read:,} prototypes can be given oxidation states: it takes a crystal{within} with an anion of "
            "N, O, F, S, Cl, Se, Br or I and other elements, each with one whole charge"
        )
    lists = [_likely(host.ions, host.amounts, allowed, min_probability) for host in hosts]
    if not sum(len(ions) for ions, _ in lists):
        among = "" if elements is None else f" in {', '.join(elements)}"
        raise SourceError(
            f"none of {len(hosts):,} prototypes has a neutral substitution{among} with a probability of "
            f"{min_probability:g} or more: allow more elements, a lower probability, or take other prototypes"
        )
    return _in_drawn_order(SubstitutionPlan(read, hosts, *_joined(hosts, lists)), seed)


def _allowed_ions(elements: Collection[str] | None) -> NDArray[np.bool_]:
    """bool[n_ions], those of some elements."""
    table = ion_table()
    if elements is None:
        return np.ones(len(table.name), dtype=bool)
    unknown = [symbol for symbol in elements if atomic_numbers.get(symbol, 0) == 0]
    if unknown or not elements:
        raise ConfigError(f"elements {', '.join(map(repr, unknown)) or '(none)'}: say symbols, such as Li,Na,O")
    return np.isin(table.atomic_number, [atomic_numbers[symbol] for symbol in elements])


def _likely(
    ions: tuple[int, ...], amounts: tuple[int, ...], allowed: NDArray[np.bool_], min_probability: float
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The substitutions of one formula that are likely, neutral, and not the formula itself.

    Ions are added one after the other. What can no longer become likely is dropped at once, and as the probabilities
    of an ion sum to 1, never more than 1 / min_probability are left.

    Returns:
        int16[n, n_ions], indices into the ion table; float64[n], probabilities.
    """
    table = ion_table()
    rows = np.where(allowed, table.probability[list(ions)], 0.0)
    best = rows.max(axis=1)
    found = np.zeros((1, 0), dtype=np.int16)
    probability = np.ones(1)
    for place, row in enumerate(rows):
        after = float(np.prod(best[place + 1 :]))
        product = probability[:, None] * row
        kept, new = np.nonzero(product * after >= min_probability)
        found = np.column_stack([found[kept], new.astype(np.int16)])
        probability = product[kept, new]
    element = np.sort(table.atomic_number[found], axis=1)
    good = (table.charge[found] @ np.array(amounts)) == 0
    good &= (element[:, 1:] != element[:, :-1]).all(axis=1)
    good &= (found != np.array(ions)).any(axis=1)
    return found[good], probability[good]


def _joined(
    hosts: list[_Host], lists: list[tuple[NDArray[np.int16], NDArray[np.float64]]]
) -> tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.float64], NDArray[np.float64]]:
    """Host, padded ions, probability and scale of all substitutions; see `SubstitutionPlan`."""
    radius = ion_table().radius
    lengths = [len(probability) for _, probability in lists]
    widest = max(len(host.ions) for host in hosts)
    ions = np.full((sum(lengths), widest), -1, dtype=np.int16)
    scale = np.empty(len(ions))
    start = 0
    for host, (new, _) in zip(hosts, lists, strict=True):
        rows = slice(start, start + len(new))
        ions[rows, : len(host.ions)] = new
        amounts = np.array(host.amounts, dtype=np.float64)
        scale[rows] = (amounts * radius[new]).sum(axis=1) / (amounts * radius[list(host.ions)]).sum()
        start += len(new)
    host_of = np.repeat(np.arange(len(hosts), dtype=np.int32), lengths)
    return host_of, ions, np.concatenate([probability for _, probability in lists]), scale


def _in_drawn_order(plan: SubstitutionPlan, seed: int) -> SubstitutionPlan:
    """Draw without replacement, each in proportion to its probability.

    Sorting by log p plus Gumbel noise does it at one go (Yellott, J. Math. Psychol. 15, 109 (1977)).
    """
    noise = np.random.default_rng((seed, 0)).gumbel(size=len(plan.probability))
    order = np.argsort(-(np.log(plan.probability) + noise), kind="stable")
    return SubstitutionPlan(
        plan.read, plan.hosts, plan.host[order], plan.ions[order], plan.probability[order], plan.scale[order]
    )


def draw_candidates(
    plan: SubstitutionPlan, count: int, seed: int, max_strain: float, rattle: float
) -> Iterator[Candidate]:
    """Make candidates in the order of the plan, then strained and rattled copies in the same order."""
    table = ion_table()
    rng = np.random.default_rng((seed, 1))
    # 8 bytes of the hash: among a million candidates, two different ones are taken for equal with a chance of 3e-8.
    seen = {host.structure.content_hash()[:8] for host in plan.hosts}
    number = 0
    for copy in count_up():
        before = number
        for row in range(len(plan.host)):
            if number == count:
                return
            host, scale = plan.hosts[plan.host[row]], float(plan.scale[row])
            new = plan.ions[row, : len(host.ions)]
            frac = host.structure.frac_coord
            if copy:
                scale *= 1 + rng.uniform(-max_strain, max_strain)
            cell = host.structure.cell * scale
            if copy:
                frac = frac + rng.normal(0, rattle, frac.shape) @ np.linalg.inv(cell)
            structure = Structure.from_fractional(table.atomic_number[new][host.site], cell, frac)
            key = structure.content_hash()[:8]
            if key in seen:
                continue
            seen.add(key)
            names = tuple((table.name[old], table.name[ion]) for old, ion in zip(host.ions, new, strict=True))
            yield Candidate(
                structure, f"{host.name}-{number:07d}", host.name, float(plan.probability[row]), names, copy
            )
            number += 1
        if number == before:
            raise SourceError(
                f"only {number:,} distinct candidates: allow strain or rattle, less likely substitutions, or take more "
                "prototypes"
            )
