//! A rank's link as those hold it who run the rank, whichever kind it is.

use crate::{Arrived, Fault, Half, Home, Link, LinkError, Loads, Mesh, Place, PlaceError, Transport};
use chorale_device::Device;
use chorale_plan::{OneShot, Placement, Rank, StepPlan};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A link with a place in a world.
pub trait Member<D: Device>: Link<D> {
    /// The place that was taken.
    fn place(&self) -> &Place;

    /// Where the experts are.
    fn placement(&self) -> &Placement;

    /// Refuses a placement that is none for this world.
    fn check(&self, placement: &Placement) -> Result<(), PlaceError<D::Error>>;

    /// Refuses, with the reason, a plan that this link cannot exchange: it comes
    /// from another process.
    fn check_plan(&self, _plan: &StepPlan) -> Result<(), String> {
        Ok(())
    }

    /// Goes over to another placement, between two steps.
    fn go_over(&mut self, device: &mut D, placement: Placement) -> Result<(), PlaceError<D::Error>>;

    /// Rows that came to each expert of this rank.
    fn loads(&self) -> &Arc<Loads>;

    /// How long was waited for other ranks since this was last asked.
    fn take_waited(&mut self) -> Duration;

    /// Which small exchanges take one launch to send and one to receive.
    fn one_shot(&self) -> OneShot {
        OneShot::default()
    }

    /// Tells whether anything that is still computed may be wrong: exchanges that a
    /// device does by itself end like any other when they fail.
    fn health(&self) -> Arc<dyn Health> {
        Arc::new(AtomicBool::new(false))
    }
}

/// Whether exchanges that a device does by itself went well, asked on any thread.
pub trait Health: Send + Sync {
    /// Why what was computed since may be wrong; `None` if it is right. Says so
    /// before anything wrong can be had.
    fn fault(&self) -> Option<Fault>;
}

/// Is set when exchanges are given up.
impl Health for AtomicBool {
    fn fault(&self) -> Option<Fault> {
        let reason = || "exchanges with other ranks were given up while it was computed".to_owned();
        self.load(Ordering::Acquire).then(|| Fault::Unknown { reason: reason() })
    }
}

/// Makes a rank's link for each place that it takes.
pub trait Joining<D: Device>: Send {
    /// Takes a place in a world whose ranks `transport` connects.
    fn join(
        &mut self,
        device: &mut D,
        transport: Box<dyn Transport>,
        place: Place,
        placement: Placement,
    ) -> Result<Box<dyn Member<D>>, JoinError>;
}

/// Why a rank has no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct JoinError {
    /// The rank that was waited for, if that is why.
    pub rank: Option<Rank>,
    /// What is known of the reason.
    pub reason: String,
    /// True if what was to carry rows failed, and neither this rank nor another is
    /// known to be at fault.
    pub carrier_failed: bool,
}

/// Joins every world by frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meshes;

impl<D: Device + 'static> Joining<D> for Meshes {
    fn join(
        &mut self,
        device: &mut D,
        transport: Box<dyn Transport>,
        place: Place,
        placement: Placement,
    ) -> Result<Box<dyn Member<D>>, JoinError> {
        let mesh = Mesh::new(device, transport, place, placement);
        let mesh =
            mesh.map_err(|error| JoinError { rank: None, reason: error.to_string(), carrier_failed: false })?;
        Ok(Box::new(mesh))
    }
}

impl<D: Device, T: Transport> Member<D> for Mesh<D, T> {
    fn place(&self) -> &Place {
        self.place()
    }

    fn placement(&self) -> &Placement {
        self.placement()
    }

    fn check(&self, placement: &Placement) -> Result<(), PlaceError<D::Error>> {
        self.check(placement)
    }

    fn go_over(&mut self, device: &mut D, placement: Placement) -> Result<(), PlaceError<D::Error>> {
        self.go_over(device, placement)
    }

    fn loads(&self) -> &Arc<Loads> {
        self.loads()
    }

    fn take_waited(&mut self) -> Duration {
        self.take_waited()
    }
}

impl<D: Device> Member<D> for Box<dyn Member<D>> {
    fn place(&self) -> &Place {
        (**self).place()
    }

    fn placement(&self) -> &Placement {
        (**self).placement()
    }

    fn check(&self, placement: &Placement) -> Result<(), PlaceError<D::Error>> {
        (**self).check(placement)
    }

    fn check_plan(&self, plan: &StepPlan) -> Result<(), String> {
        (**self).check_plan(plan)
    }

    fn go_over(&mut self, device: &mut D, placement: Placement) -> Result<(), PlaceError<D::Error>> {
        (**self).go_over(device, placement)
    }

    fn loads(&self) -> &Arc<Loads> {
        (**self).loads()
    }

    fn take_waited(&mut self) -> Duration {
        (**self).take_waited()
    }

    fn one_shot(&self) -> OneShot {
        (**self).one_shot()
    }

    fn health(&self) -> Arc<dyn Health> {
        (**self).health()
    }
}

impl<D: Device> Link<D> for Box<dyn Member<D>> {
    fn begin(&mut self, step: u64) {
        (**self).begin(step);
    }

    fn expect(&mut self, home_rows: &[u32], in_halves: bool) {
        (**self).expect(home_rows, in_halves);
    }

    fn begin_gather(
        &mut self,
        device: &mut D,
        half: Half,
        cols: &[usize],
        part: &D::Matrix,
    ) -> Result<(), LinkError<D::Error>> {
        (**self).begin_gather(device, half, cols, part)
    }

    fn end_gather(
        &mut self,
        device: &mut D,
        half: Half,
        cols: &[usize],
        part: &mut D::Matrix,
        whole: &mut D::Matrix,
    ) -> Result<(), LinkError<D::Error>> {
        (**self).end_gather(device, half, cols, part, whole)
    }

    fn begin_dispatch(
        &mut self,
        device: &mut D,
        half: Half,
        rows: &D::Matrix,
        routing: &D::Routing,
    ) -> Result<(), LinkError<D::Error>> {
        (**self).begin_dispatch(device, half, rows, routing)
    }

    fn end_dispatch<'a>(
        &'a mut self,
        device: &mut D,
        half: Half,
        rows: &'a D::Matrix,
        routing: &D::Routing,
    ) -> Result<Arrived<'a, D>, LinkError<D::Error>> {
        (**self).end_dispatch(device, half, rows, routing)
    }

    fn begin_combine(
        &mut self,
        device: &mut D,
        half: Half,
        outputs: &mut D::Matrix,
        home: &mut D::Matrix,
    ) -> Result<(), LinkError<D::Error>> {
        (**self).begin_combine(device, half, outputs, home)
    }

    fn end_combine(
        &mut self,
        device: &mut D,
        half: Half,
        home: &mut D::Matrix,
    ) -> Result<Home, LinkError<D::Error>> {
        (**self).end_combine(device, half, home)
    }
}
