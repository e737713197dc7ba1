//! What is done, one by one: each item begins with a context that works.

use super::whole::WHOLE;
use super::{Arguments, Stand};
use crate::bench::{self, Extent, Part};
use crate::checks::families;
use crate::goldens::GOLDENS;
use crate::primitives::PRIMITIVES;
use chorale_cuda::{Cuda, Facts};
use std::time::Duration;

/// What takes longer is ended. The portable device computes the same on the host's
/// cores, which takes most of a check's time.
const PRIMITIVE_WITHIN: Duration = Duration::from_secs(60);
const CHECK_WITHIN: Duration = Duration::from_secs(240);

/// Something to do.
pub(super) struct Item {
    /// What it belongs to.
    pub(super) family: &'static str,
    /// Its own name.
    pub(super) name: String,
    /// How long it may take.
    pub(super) within: Duration,
    pub(super) task: Task,
}

/// What is to be done.
pub(super) enum Task {
    /// By its place among the primitives.
    Primitive(usize),
    /// By the places of its family and of itself.
    Check(usize, usize),
    /// By the places of the golden and of what is done with it.
    Whole(usize, usize),
    /// Something is measured.
    Part(Part),
    /// So many ranks of one process exchange.
    Circle(usize),
}

impl Item {
    /// What names it among all.
    pub(super) fn full_name(&self) -> String {
        format!("{} / {}", self.family, self.name)
    }

    pub(super) fn is_check(&self) -> bool {
        matches!(self.task, Task::Primitive(_) | Task::Check(..) | Task::Whole(..))
    }
}

/// How much is measured, as the arguments want it.
pub(super) fn extent(stand: &dyn Stand, arguments: &Arguments) -> Extent {
    let extent = stand.extent(arguments.quick);
    Extent {
        layers: arguments.layers.unwrap_or(extent.layers),
        only: arguments.only.clone(),
        seed: arguments.seed,
        ..extent
    }
}

/// All that the arguments ask for, what others are made of first.
pub(super) fn items(stand: &dyn Stand, arguments: &Arguments, facts: &Facts) -> Vec<Item> {
    let mut items = Vec::new();
    if arguments.check {
        items.extend(checks(arguments, facts));
    }
    if arguments.bench {
        let parts = bench::parts(&extent(stand, arguments)).into_iter();
        items.extend(parts.map(|part| Item {
            family: "bench",
            name: part.name.clone(),
            within: part.within,
            task: Task::Part(part),
        }));
    }
    if let Some(count) = arguments.circle {
        let name = format!("{count} ranks of one process");
        items.push(Item { family: "small exchanges", name, within: CHECK_WITHIN, task: Task::Circle(count) });
    }
    items
}

fn checks(arguments: &Arguments, facts: &Facts) -> Vec<Item> {
    let mut items = Vec::new();
    for (place, primitive) in PRIMITIVES.iter().enumerate() {
        if facts.is_hopper() || !primitive.is_hopper_only {
            let name = primitive.name.to_owned();
            let task = Task::Primitive(place);
            items.push(Item { family: "primitives", name, within: PRIMITIVE_WITHIN, task });
        }
    }
    for (family_place, family) in families::<Cuda>().into_iter().enumerate() {
        for (place, check) in family.checks.into_iter().enumerate() {
            let name = check.name.to_owned();
            let task = Task::Check(family_place, place);
            items.push(Item { family: family.name, name, within: CHECK_WITHIN, task });
        }
    }
    for (golden_place, golden) in GOLDENS.iter().enumerate() {
        for (place, (name, _)) in WHOLE.iter().enumerate() {
            let name = format!("{}: {name}", golden.name);
            let task = Task::Whole(golden_place, place);
            items.push(Item { family: "goldens", name, within: CHECK_WITHIN, task });
        }
    }
    items.retain(|item| item.family.contains(&arguments.only) || item.name.contains(&arguments.only));
    items
}
