//! How ranks come to exchange what is small from GPU to GPU, by kernels alone: all
//! of them offer memory, reach the others' and try it out, or none of them does it
//! and NCCL carries everything. What each has to say goes over the connections that
//! they have with each other already.

use crate::bring_up::malformed;
use crate::circles::Circles;
use bytes::Bytes;
use chorale_cuda::{Area, Circle, Cuda, GpuError, KeptArea, Matrix, OFFER_BYTES, Offer, area_room};
use chorale_device::{Device, Precision};
use chorale_link::{Fault, Frame, Place, Transport};
use chorale_plan::Rank;
use std::ops::Range;
use std::time::Duration;

/// What is said here belongs to no exchange of a step, and not to NCCL's beginning.
const EXCHANGE: u32 = u32::MAX - 1;

/// What an answer begins with.
const YES: u8 = 0;
const NO: u8 = 1;
const MAX_REASON_BYTES: usize = 1024;
const MAX_SAID_BYTES: usize = if OFFER_BYTES > MAX_REASON_BYTES { OFFER_BYTES } else { MAX_REASON_BYTES };

/// What comes to a GPU at a time goes by kernels up to so many bytes. Over NVLink
/// they take some 5 us beyond the way itself, which NCCL needs for anything at all
/// three times over; beyond, NCCL's rings use the wires better than words that are
/// half number. It is a step of 45 rows of gpt-oss whose answers come home.
pub const SMALL_BYTES: usize = 1 << 20;

/// What memory of earlier epochs is kept for ranks that may still write to it.
const MAX_KEPT_BYTES: usize = 256 << 20;

/// What is tried out waits no longer: all are there.
const LONGEST_TRIAL: Duration = Duration::from_secs(5);
const TRIAL_ROWS: usize = 2;
const TRIAL_COLS: usize = 24;

/// What is small is more than what is tried out.
pub(crate) const LEAST_BYTES: usize = 2048;

/// How a rank takes part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SmallExchanges {
    /// False: NCCL carries everything, for all ranks.
    pub(crate) are_on: bool,
    /// At most so many bytes come to a rank at a time.
    pub(crate) max_bytes: usize,
    /// Exchanges until areas are cleared.
    pub(crate) renewal: u32,
}

impl Default for SmallExchanges {
    fn default() -> Self {
        Self { are_on: true, max_bytes: SMALL_BYTES, renewal: u32::MAX }
    }
}

/// Areas of earlier epochs that processes have mapped which may still use them.
#[derive(Default)]
pub(crate) struct KeptAreas(Vec<(KeptArea, Vec<[u8; 16]>)>);

impl KeptAreas {
    fn bytes(&self) -> usize {
        self.0.iter().map(|(area, _)| area.bytes()).sum()
    }

    /// Processes that offer anew have let go of all they had before.
    fn let_go(&mut self, offers: &[Offer]) {
        for (_, processes) in &mut self.0 {
            processes.retain(|process| offers.iter().all(|offer| offer.process != *process));
        }
        self.0.retain(|(_, processes)| !processes.is_empty());
    }

    fn keep(&mut self, area: KeptArea, offers: &[Offer]) {
        let others = offers.iter().filter(|offer| !offer.is_own());
        let processes: Vec<[u8; 16]> = others.map(|offer| offer.process).collect();
        if !processes.is_empty() {
            self.0.push((area, processes));
        }
    }
}

/// Bytes of the GPU's memory that a place takes for small exchanges.
pub fn small_exchange_bytes(place: &Place) -> usize {
    let circles = usize::from(place.shape.num_ranks > 1) + usize::from(group(place).is_some());
    circles * area_room(num_channels(place), SMALL_BYTES)
}

/// One for each half of a step.
fn num_channels(place: &Place) -> usize {
    if place.exchange.overlap_min_rows.is_some() { 2 } else { 1 }
}

fn group(place: &Place) -> Option<Range<u32>> {
    place.shape.group(place.rank).filter(|group| group.len() > 1)
}

/// Brings the circles of a place up; all its ranks come here at about the same time.
///
/// # Errors
///
/// [`Fault`] where another rank does not come, or says what cannot be. That GPUs
/// do not reach each other is none.
pub(crate) fn agree(
    device: &mut Cuda,
    transport: &mut dyn Transport,
    place: &Place,
    (small, kept): (SmallExchanges, &mut KeptAreas),
) -> Result<Circles, Fault> {
    let mut agreement = Agreement { device, transport, place, small, kept };
    let everybody = 0..place.shape.num_ranks;
    let world = agreement.prepare("the world", &everybody)?;
    let world = agreement.finish("the world", &everybody, world)?;
    let group = group(place).unwrap_or(0..0);
    let prepared = agreement.prepare("a group", &group)?;
    // Before one group tries, all have what they take; and while one still tries,
    // nobody goes on to what makes CUDA wait: see `Trial`.
    let _ = agreement.say(&everybody, Ok(Vec::new()))?;
    let group = agreement.finish("a group", &group, prepared)?;
    let _ = agreement.say(&everybody, Ok(Vec::new()))?;
    Ok(Circles::new(place, world, group))
}

struct Agreement<'a> {
    device: &'a mut Cuda,
    transport: &'a mut dyn Transport,
    place: &'a Place,
    small: SmallExchanges,
    kept: &'a mut KeptAreas,
}

/// What each rank says, in order; or the first that says no, with its reason.
type Said = Result<Vec<Bytes>, (Rank, String)>;

impl Agreement<'_> {
    /// The circle of some ranks, not tried out yet; `None` if they agree that there
    /// is none.
    fn prepare(&mut self, what: &str, ranks: &Range<u32>) -> Result<Option<(Trial, Circle)>, Fault> {
        if ranks.len() < 2 {
            return Ok(None);
        }
        let area = self.area();
        let said =
            self.say(ranks, area.as_ref().map(|area| area.offer().to_bytes()).map_err(Clone::clone))?;
        let (said, area) = match (said, area) {
            (Ok(said), Ok(area)) => (said, area),
            (Err(no), _) => {
                self.refused(what, no);
                return Ok(None);
            }
            (Ok(_), Err(reason)) => return Err(Fault::Unknown { reason }),
        };
        let offers = ranks.clone().zip(&said).map(|(rank, bytes)| {
            let none = || malformed(Rank(rank), format!("{} bytes that offer no memory", bytes.len()));
            Offer::from_bytes(bytes).ok_or_else(none)
        });
        let offers: Vec<Offer> = offers.collect::<Result<_, _>>()?;
        self.kept.let_go(&offers);
        self.kept.keep(area.keep(), &offers);
        let member = (self.place.rank.0 - ranks.start) as usize;
        let circle = area.connect(self.device, member, &offers, LONGEST_TRIAL.min(self.timeout() / 2));
        let ready = circle.and_then(|circle| Ok((Trial::new(self.device, &circle, member)?, circle)));
        Ok(match self.vote(ranks, ready)? {
            Ok(ready) => Some(ready),
            Err(no) => {
                self.refused(what, no);
                None
            }
        })
    }

    /// Tries a circle out; `None` if its ranks agree that there is none.
    fn finish(
        &mut self,
        what: &str,
        ranks: &Range<u32>,
        prepared: Option<(Trial, Circle)>,
    ) -> Result<Option<Circle>, Fault> {
        let Some((trial, mut circle)) = prepared else { return Ok(None) };
        // An end of the epoch ends the trial, too.
        let abort = circle.abort_handle();
        self.transport.at_end(Box::new(move || abort.abort()));
        let tried = self.try_out(&mut circle, trial);
        if let Err(no) = self.vote(ranks, tried)? {
            self.refused(what, no);
            return Ok(None);
        }
        circle.wait_at_most(self.timeout());
        circle.wear_out_after(self.small.renewal);
        let (epoch, num_ranks, max_bytes) = (self.place.epoch.0, ranks.len(), self.small.max_bytes);
        tracing::info!(
            epoch,
            num_ranks,
            max_bytes,
            "small exchanges of {what} go from GPU to GPU, by kernels"
        );
        Ok(Some(circle))
    }

    fn refused(&self, what: &str, (rank, reason): (Rank, String)) {
        let epoch = self.place.epoch.0;
        tracing::info!(epoch, rank = rank.0, reason, "small exchanges of {what} go by NCCL, like all others");
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.place.exchange.timeout_ms.into())
    }

    fn area(&mut self) -> Result<Area, String> {
        if !self.small.are_on {
            return Err("they are switched off there".to_owned());
        }
        let kept = self.kept.bytes();
        if kept > MAX_KEPT_BYTES {
            return Err(format!("{kept} bytes are kept for ranks of earlier epochs that did not come back"));
        }
        let area = Area::new(self.device, num_channels(self.place), self.small.max_bytes);
        area.map_err(|error| error.to_string())
    }

    /// What all of the ranks did, if all of them could.
    fn vote<T>(
        &mut self,
        ranks: &Range<u32>,
        own: Result<T, impl ToString>,
    ) -> Result<Result<T, (Rank, String)>, Fault> {
        let (own, said) = match own {
            Ok(own) => (Some(own), Ok(Vec::new())),
            Err(error) => (None, Err(error.to_string())),
        };
        Ok(match (self.say(ranks, said)?, own) {
            (Ok(_), Some(own)) => Ok(own),
            (Err(no), _) => Err(no),
            (Ok(_), None) => Err((self.place.rank, "it was not heard".to_owned())),
        })
    }

    /// Exchanges what each member's columns show who it is and in which channel.
    /// Nothing is allocated meanwhile, see [`Trial`].
    fn try_out(&mut self, circle: &mut Circle, mut trial: Trial) -> Result<Trial, String> {
        let cannot = |error: GpuError| error.to_string();
        let cols = vec![TRIAL_COLS; circle.num_members()];
        for channel in 0..num_channels(self.place) {
            let own = trial.of(channel, trial.member);
            self.device.write(&own, &mut trial.part).map_err(cannot)?;
            circle.send_columns(self.device, channel, &cols, &trial.part);
            circle.join_columns(self.device, channel, &cols, TRIAL_ROWS, &mut trial.whole);
            let found = self.device.read(&trial.whole).map_err(cannot)?;
            if let Some(failure) = circle.watch().failure() {
                return Err(format!("what was tried out did not come: {failure:?}"));
            }
            let of: Vec<Vec<f32>> = (0..cols.len()).map(|member| trial.of(channel, member)).collect();
            let row = |row| of.iter().flat_map(move |part| &part[row * TRIAL_COLS..][..TRIAL_COLS]);
            if !(0..TRIAL_ROWS).flat_map(row).eq(&found) {
                return Err("what was tried out came as something else".to_owned());
            }
        }
        Ok(trial)
    }

    /// Tells all of the ranks what each of them says, by way of the first.
    fn say(&mut self, ranks: &Range<u32>, own: Result<Vec<u8>, String>) -> Result<Said, Fault> {
        let own = Bytes::from(match own {
            Ok(said) => [&[YES], &said[..]].concat(),
            Err(reason) => {
                let end = reason.floor_char_boundary(MAX_REASON_BYTES);
                [&[NO], &reason.as_bytes()[..end]].concat()
            }
        });
        let first = Rank(ranks.start);
        let others = || ranks.clone().skip(1).map(Rank);
        let mut all = Vec::with_capacity(ranks.len());
        if self.place.rank == first {
            all.push(own);
            for rank in others() {
                all.push(self.receive(rank)?);
            }
            for rank in others() {
                all.iter().try_for_each(|said| self.send(rank, said.clone()))?;
            }
        } else {
            self.send(first, own)?;
            for _ in ranks.clone() {
                all.push(self.receive(first)?);
            }
        }
        let mut said = Vec::with_capacity(all.len());
        for (rank, bytes) in ranks.clone().map(Rank).zip(all) {
            match bytes.first() {
                Some(&YES) => said.push(bytes.slice(1..)),
                Some(&NO) => return Ok(Err((rank, String::from_utf8_lossy(&bytes[1..]).into_owned()))),
                _ => return Err(malformed(rank, "neither yes nor no".to_owned())),
            }
        }
        Ok(Ok(said))
    }

    fn send(&mut self, to: Rank, payload: Bytes) -> Result<(), Fault> {
        self.transport.send(to, Frame { epoch: self.place.epoch, step: 0, exchange: EXCHANGE, payload })
    }

    fn receive(&mut self, from: Rank) -> Result<Bytes, Fault> {
        let frame = self.transport.receive(from)?;
        let epoch = self.place.epoch;
        if (frame.epoch, frame.step, frame.exchange) != (epoch, 0, EXCHANGE) {
            return Err(Fault::Astray {
                rank: from,
                found: format!(
                    "exchange {} of step {} of epoch {}",
                    frame.exchange, frame.step, frame.epoch.0
                ),
                expected: format!("what is said of memory in epoch {}", epoch.0),
            });
        }
        if frame.payload.len() > MAX_SAID_BYTES + 1 {
            return Err(malformed(from, format!("{} bytes about memory", frame.payload.len())));
        }
        Ok(frame.payload)
    }
}

/// What a trial takes, made before the first of a circle sends: to allocate, CUDA may
/// wait for all GPUs of the process, of which some wait for this one from then on.
struct Trial {
    member: usize,
    part: Matrix,
    whole: Matrix,
}

impl Trial {
    fn new(device: &mut Cuda, circle: &Circle, member: usize) -> Result<Self, GpuError> {
        let whole_cols = circle.num_members() * TRIAL_COLS;
        let mut trial = Self {
            member,
            part: device.matrix(TRIAL_ROWS, TRIAL_COLS, Precision::Half)?,
            whole: device.matrix(TRIAL_ROWS, whole_cols, Precision::Half)?,
        };
        // So that there is what numbers go through on their way to the host and back.
        device.write(&vec![0.0; TRIAL_ROWS * whole_cols], &mut trial.whole)?;
        device.read(&trial.whole)?;
        Ok(trial)
    }

    /// The part of a member, row by row.
    fn of(&self, channel: usize, member: usize) -> Vec<f32> {
        let value = |at: usize| channel + 2 * member + 40 * (at / TRIAL_COLS) + at % TRIAL_COLS;
        (0..TRIAL_ROWS * TRIAL_COLS).map(|at| value(at) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chorale_emulator::{Emulator, Options};

    #[test]
    fn memory_is_kept_until_all_who_mapped_it_offer_anew() {
        let device = &mut Cuda::new(Emulator::new(Options::default()).unwrap());
        let area = Area::new(device, 1, 4096).unwrap();
        let own = *area.offer();
        let of = |process: u8| {
            let mut offer = own;
            offer.process = [process; 16];
            offer
        };
        let mut kept = KeptAreas::default();
        kept.keep(area.keep(), &[own, own]);
        assert_eq!(kept.bytes(), 0, "who is of this process keeps it himself");
        kept.keep(area.keep(), &[own, of(1), of(2)]);
        kept.let_go(&[own, of(1), of(3)]);
        assert_eq!(kept.bytes(), own.len as usize);
        kept.let_go(&[of(2)]);
        assert_eq!(kept.bytes(), 0);
    }
}
