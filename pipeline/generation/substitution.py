"""Candidate crystals made by ion substitution in known prototypes, with likely ions and rescaled volumes.

Each element of a prototype is assigned an oxidation state. These ions are replaced by others, with the probabilities
that Hautier, Fischer, Ehrlacher, Jain and Ceder mined from the ICSD (Inorg. Chem. 50, 656 (2011)), as shipped with
pymatgen. A candidate must be neutral, and distinct elements must stay distinct.
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

# Less likely substitutions are skipped. pymatgen's own predictor stops at 1e-3, which leaves about 40 per prototype;
# 1e-4 leaves about 200, so that a large set has more new chemistry and fewer strained copies.
MIN_PROBABILITY = 1e-4
LEAST_PROBABILITY = 1e-6  # below this, the list of likely substitutions of one prototype takes gigabytes
# Strain and rattle of the copies that are made when all substitutions are used up.
MAX_STRAIN = 0.03
RATTLE = 0.05  # angstrom
BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """A hypothetical crystal.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.pipeline import Structure, substitute
        >>> salt = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64))
        >>> candidate = next(substitute([("NaCl", salt)], 1, elements=["K", "Cl"]))
        >>> candidate.prototype, candidate.substitutions
        ('NaCl', (('Na+', 'K+'), ('Cl-', 'Cl-')))

    Attributes:
        structure: The structure, with sites in the prototype's order.
        name: Name of the prototype and number of the candidate; unique within one call.
        prototype: Name of the prototype.
        probability: Product over the prototype's ions, including unchanged ones, of the conditional probability
            p(new ion | old ion) of Hautier et al.; not normalised over the neutral substitutions.
        substitutions: (old ion, new ion) for each element of the prototype, in pymatgen's notation: ("Ti4+", "Zr4+").
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
        name: Name of the prototype.
        structure: Structure of the prototype.
        ions: Index into the ion table for each element, in the order of atomic numbers.
        amounts: Amount of each ion in the reduced formula.
        site: int64[n_atoms], index into `ions` of each site.
    """

    name: str
    structure: Structure
    ions: tuple[int, ...]
    amounts: tuple[int, ...]
    site: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SubstitutionPlan:
    """All likely substitutions, in the order in which they were drawn.

    Attributes:
        read: Number of prototypes read.
        hosts: The prototypes with oxidation states.
        host: int32[n], index into `hosts` of each substitution.
        ions: int16[n, n_ions], new ions of each substitution; n_ions is the largest number of elements in a prototype,
            and shorter rows are padded with -1.
        probability: float64[n]; see `Candidate`.
        scale: float64[n], scaling factor of the lattice vectors.
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
    """Make candidates by substituting ions in prototypes.

    All likely substitutions of all prototypes are drawn without replacement, each with a chance proportional to its
    probability, so more likely ones tend to come earlier. The cell is scaled so that

        V_new / V_old = (sum_i n_i r(new ion i) / sum_i n_i r(old ion i))^3

    with Shannon's ionic radii r and n_i ions in the formula; pymatgen's `RLSVolumePredictor` has n_i^(1/3) instead of
    n_i. Of several formulas (ionic, covalent or atomic radii; sums of radii, sums of cubes, closest contact), this one
    came closest to the volumes of real isostructural crystals.

    When all substitutions are used up, they are repeated with random isotropic strains and displacements. No two
    candidates, and no candidate and prototype, have the same content hash. With the same prototypes, seed and settings,
    a smaller `count` gives the first candidates of a larger one. Candidates that would relax to the same crystal are
    not
    detected: two prototypes of one structure type give the same compounds, in cells of nearly the same size.

    A prototype is skipped if it is not periodic in three directions or has more than `max_atoms` atoms. It is also
    skipped if its most likely oxidation states (pymatgen's `Composition.oxi_state_guesses`) are not one integer per
    element, or if one of its ions is missing from the table, which has the anions of N, O, F, S, Cl, Se, Br and I.

    Example:
        >>> from ase.build import bulk
        >>> from equiscreen.pipeline import Structure, substitute
        >>> salt = Structure.from_ase(bulk("NaCl", "rocksalt", a=5.64))
        >>> for candidate in substitute([("NaCl", salt)], 2, elements=["Li", "Na", "K", "Br"]):
        ...     print(candidate.structure.to_ase().symbols)
        KBr
        NaBr

    Args:
        prototypes: Name and structure of each prototype; all are read before the first candidate is made.
        count: Number of candidates.
        seed: Random seed, not negative.
        elements: Symbols of the elements that a candidate may contain; None allows all.
        max_atoms: Maximum number of atoms in a cell; None sets no limit.
        min_probability: Smallest `Candidate.probability`; less likely substitutions are skipped.
        max_strain: Largest strain of copies: lattice vectors are scaled by 1 + e, with e uniform in [-max_strain,
            max_strain].
        rattle: Standard deviation of the displacements of copies along each axis, angstrom.

    Returns:
        An iterator over exactly `count` candidates, each made on demand.

    Raises:
        SourceError: No prototype can be assigned oxidation states, or none has a likely substitution. While iterating:
            no distinct candidates are left, because copies are neither strained nor rattled.
        ConfigError: A setting is out of range, or `elements` is empty or contains an unknown element.
    """
    if not (0 <= max_strain <= 0.5 and rattle >= 0):
        raise ConfigError(
            f"max_strain is {max_strain} and rattle is {rattle} angstrom; choose a max_strain of 0 to 0.5 and a rattle "
            "of 0 or more"
        )
    plan = plan_substitutions(prototypes, count, seed, elements, max_atoms, min_probability)
    return draw_candidates(plan, count, seed, max_strain, rattle)


def _host(name: str, structure: Structure) -> _Host | None:
    """Assign oxidation states to a prototype; return None if that is not possible."""
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
    """Find all likely substitutions of all prototypes and draw their order; see `substitute` for the arguments.

    Raises:
        SourceError: No prototype can be assigned oxidation states, or none has a likely substitution.
        ConfigError: A setting is out of range, or `elements` is empty or contains an unknown element.
    """
    if count < 0 or seed < 0:
        raise ConfigError(f"count is {count} and seed is {seed}; neither can be negative")
    if not LEAST_PROBABILITY <= min_probability < 1:
        raise ConfigError(
            f"min_probability is {min_probability}; choose a value of at least {LEAST_PROBABILITY} and less than 1"
        )
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
            f"no prototype (of {read:,}) can be assigned oxidation states; use crystals{within} that contain an "
            "anion of N, O, F, S, Cl, Se, Br or I, and in which all atoms of an element have the same integer charge"
        )
    lists = [_likely(host.ions, host.amounts, allowed, min_probability) for host in hosts]
    if not sum(len(ions) for ions, _ in lists):
        among = "" if elements is None else f" using only {', '.join(elements)}"
        raise SourceError(
            f"no prototype (of {len(hosts):,}) has a neutral substitution{among} with a probability of "
            f"{min_probability:g} or more; allow more elements or a lower probability, or use other prototypes"
        )
    return _in_drawn_order(SubstitutionPlan(read, hosts, *_joined(hosts, lists)), seed)


def _allowed_ions(elements: Collection[str] | None) -> NDArray[np.bool_]:
    """Return whether each ion belongs to one of the given elements: bool[n_ions]."""
    table = ion_table()
    if elements is None:
        return np.ones(len(table.name), dtype=bool)
    unknown = [symbol for symbol in elements if atomic_numbers.get(symbol, 0) == 0]
    if not elements:
        raise ConfigError("no elements given; use symbols, such as Li,Na,O")
    if unknown:
        raise ConfigError(f"unknown elements {', '.join(map(repr, unknown))}; use symbols, such as Li,Na,O")
    return np.isin(table.atomic_number, [atomic_numbers[symbol] for symbol in elements])


def _likely(
    ions: tuple[int, ...], amounts: tuple[int, ...], allowed: NDArray[np.bool_], min_probability: float
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Find the substitutions of one formula that are likely and neutral, excluding the formula itself.

    Ions are added one at a time, and combinations that can no longer become likely are discarded at once. Because the
    probabilities of an ion sum to 1, never more than 1 / min_probability combinations are left.

    Returns:
        Indices into the ion table, int16[n, n_ions], and probabilities, float64[n].
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
    """Return host, padded ions, probability and scale of all substitutions; see `SubstitutionPlan`."""
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
    """Draw substitutions without replacement, each with a chance proportional to its probability.

    Sorting by log p plus Gumbel noise does this in one step (Yellott, J. Math. Psychol. 15, 109 (1977)).
    """
    noise = np.random.default_rng((seed, 0)).gumbel(size=len(plan.probability))
    order = np.argsort(-(np.log(plan.probability) + noise), kind="stable")
    return SubstitutionPlan(
        plan.read, plan.hosts, plan.host[order], plan.ions[order], plan.probability[order], plan.scale[order]
    )


def draw_candidates(
    plan: SubstitutionPlan, count: int, seed: int, max_strain: float, rattle: float
) -> Iterator[Candidate]:
    """Make candidates in the order of the plan, then strained and rattled copies in the same order.

    Raises:
        SourceError: Fewer than `count` distinct candidates exist, because copies are neither strained nor rattled.
    """
    table = ion_table()
    rng = np.random.default_rng((seed, 1))
    # With 8 bytes of the hash, the chance that any two of a million different candidates collide is 3e-8.
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
                f"only {number:,} distinct candidates exist; allow strain, rattle or less likely substitutions, or use "
                "more prototypes"
            )
