//! The circles of a rank: which exchanges go by kernels of our own, and what is
//! known when those fail.

use crate::bring_up::Comms;
use crate::comm::{Comm, Kind, Operation};
use crate::link::NcclLink;
use chorale_cuda::{Circle, CircleWatch, Cuda, Failure, GpuError, Matrix, Ways};
use chorale_link::{Fault, Half, Health, LinkError, Place};
use chorale_plan::Rank;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What small exchanges go by; without circles, nothing does.
#[derive(Default)]
pub struct Circles {
    world: Option<Circle>,
    group: Option<Circle>,
    watched: Vec<Watched>,
}

/// A circle, as those see it who wait for what is computed.
#[derive(Clone)]
struct Watched {
    watch: CircleWatch,
    first: Rank,
    timeout: Duration,
}

/// An exchange that may go by a circle.
#[derive(Clone, Copy)]
pub(crate) enum Small<'a> {
    /// Columns of a group, of as many rows as a matrix has.
    Columns(&'a [usize], &'a Matrix),
    Rows(&'a Ways),
    Choices(&'a Ways),
    Sums(&'a Ways),
}

impl Circles {
    pub(crate) fn new(place: &Place, world: Option<Circle>, group: Option<Circle>) -> Self {
        let first = place.shape.group(place.rank).map_or(0, |group| group.start);
        let timeout = Duration::from_millis(place.exchange.timeout_ms.into());
        let watched = [(&world, 0), (&group, first)].into_iter().filter_map(|(circle, first)| {
            let watch = circle.as_ref()?.watch();
            Some(Watched { watch, first: Rank(first), timeout })
        });
        let watched = watched.collect();
        Self { world, group, watched }
    }

    /// True if what is small goes by kernels among all ranks.
    pub fn has_world(&self) -> bool {
        self.world.is_some()
    }

    /// True if it does in the rank's group.
    pub fn has_group(&self) -> bool {
        self.group.is_some()
    }

    /// The circle that carries an exchange, if one does: the same for all its ranks,
    /// for what they go by is the same for all.
    pub(crate) fn carrier(&mut self, small: Small<'_>) -> Option<&mut Circle> {
        let circle = match small {
            Small::Columns(..) => self.group.as_mut()?,
            Small::Rows(_) | Small::Choices(_) | Small::Sums(_) => self.world.as_mut()?,
        };
        fits(circle, small).then_some(circle)
    }

    /// The members of the circle that carries an exchange, if its channel is to be
    /// cleared first.
    pub(crate) fn worn(&mut self, small: Small<'_>, channel: usize) -> Option<usize> {
        let circle = self.carrier(small)?;
        circle.is_worn(channel).then(|| circle.num_members())
    }

    /// Why exchanges failed, if some did.
    pub(crate) fn fault(&self) -> Option<Fault> {
        fault(&self.watched)
    }

    /// Tells of these circles, and of communicators.
    pub(crate) fn health(&self, is_broken: Arc<AtomicBool>) -> Arc<dyn Health> {
        Arc::new(WholeHealth { watched: self.watched.clone(), is_broken })
    }
}

impl NcclLink {
    /// The half's rows, as the world's circle carries them.
    pub(crate) fn ways(&mut self, half: Half) -> Ways {
        let share_rows = self.shares(half).share;
        let Place { shape, top_k, hidden_size, .. } = self.place;
        let group_size = shape.tensor_parallel_size as usize;
        Ways { share_rows, group_size, num_homes: shape.data_parallel_size as usize, top_k, hidden_size }
    }

    pub(crate) fn way_home<'a>(&self, ways: &'a Ways) -> Small<'a> {
        if self.place.exchange.fast_combine { Small::Sums(ways) } else { Small::Choices(ways) }
    }

    /// Clears the channel of a circle that has carried as much as it can, while no
    /// rank is in an exchange: all wait for all before and after.
    pub(crate) fn make_ready(
        &mut self,
        device: &mut Cuda,
        (half, exchange): (Half, &str),
        small: Small<'_>,
    ) -> Result<(), LinkError<GpuError>> {
        let channel = half as usize;
        let Some(num_members) = self.circles.worn(small, channel) else { return Ok(()) };
        let who: fn(&Comms) -> Option<&Comm> = match small {
            Small::Columns(..) => |comms| comms.group.as_ref(),
            Small::Rows(_) | Small::Choices(_) | Small::Sums(_) => |comms| Some(&comms.world),
        };
        let words = device.buffer_of(&vec![0; (num_members + 1) * size_of::<u32>()])?;
        let (from, to) = (words.span(0, 4), words.span(4, num_members * 4));
        let meeting = [Operation::AllGather { from, to, count: 4, kind: Kind::Bytes }];
        self.enqueue(device, (half, exchange), who, &meeting)?;
        if let Some(circle) = self.circles.carrier(small) {
            circle.renew(device, channel);
        }
        self.enqueue(device, (half, exchange), who, &meeting)
    }
}

fn fits(circle: &Circle, small: Small<'_>) -> bool {
    match small {
        Small::Columns(cols, like) => like.rows() > 0 && circle.fits_columns(cols, like),
        Small::Rows(ways) => ways.share_rows > 0 && circle.fits_rows(ways),
        Small::Choices(ways) => ways.share_rows > 0 && circle.fits_choices(ways),
        Small::Sums(ways) => ways.share_rows > 0 && circle.fits_sums(ways),
    }
}

fn fault(watched: &[Watched]) -> Option<Fault> {
    // Who is named says more than that all was given up.
    let failures = watched.iter().filter_map(|watched| Some((watched, watched.watch.failure()?)));
    let named = failures.clone().find(|(_, failure)| matches!(failure, Failure::Member(_)));
    let (watched, failure) = named.or_else(|| failures.clone().next())?;
    Some(match failure {
        Failure::Member(member) => {
            Fault::Timeout { rank: Rank(watched.first.0 + member as u32), waited: watched.timeout }
        }
        Failure::Somebody => {
            Fault::Unknown { reason: format!("an answer did not come home within {:?}", watched.timeout) }
        }
        Failure::Aborted => Fault::Over,
    })
}

struct WholeHealth {
    watched: Vec<Watched>,
    is_broken: Arc<AtomicBool>,
}

impl Health for WholeHealth {
    fn fault(&self) -> Option<Fault> {
        fault(&self.watched).or_else(|| self.is_broken.fault())
    }
}
