//! The layers. Their loop is written once, over `Device` and `Link`: one rank or
//! many, CPU or GPU, one token or a long slice, whole or in halves, it is this
//! code.
//!
//! A layer has four stages, each of which waits for what the one before it has
//! sent. In halves, the stages of the two take turns, so that one computes
//! while the other's rows travel.

use crate::observe::{Observer, Stage};
use crate::seat::{AttentionRoom, Workspace};
use crate::weights::{Dense, DenseLayer, HeldExperts};
use chorale_device::{Columns, Device};
use chorale_link::{Half, Home, Link, LinkError};

/// What a layer does between two exchanges.
#[derive(Clone, Copy)]
enum Turn {
    /// The answers of the layer before come home; heads go out to the group.
    Attend,
    /// The group's heads come; columns of the projection go out.
    Project,
    /// The projection comes; rows go out to experts.
    Route,
    /// Rows come to experts; answers go out.
    Answer,
}

use Turn::{Answer, Attend, Project, Route};

/// The turns of a layer.
type Schedule = &'static [(Turn, usize)];

const WHOLE: Schedule = &[(Attend, 0), (Project, 0), (Route, 0), (Answer, 0)];

/// Where gathers stay on the rank, one half's attention computes while the other's
/// rows go to experts.
const HALVES_ALONE: Schedule =
    &[(Attend, 0), (Project, 0), (Route, 0), (Attend, 1), (Project, 1), (Route, 1), (Answer, 0), (Answer, 1)];

/// Where gathers cross, too, the halves change at each exchange.
const HALVES_IN_GROUP: Schedule =
    &[(Attend, 0), (Attend, 1), (Project, 0), (Project, 1), (Route, 0), (Route, 1), (Answer, 0), (Answer, 1)];

/// The layers of a rank with attention, and what they compute with.
pub(crate) struct Layers<'a, D: Device, L, O> {
    pub(crate) device: &'a mut D,
    pub(crate) link: &'a mut L,
    pub(crate) dense: &'a Dense<D>,
    pub(crate) experts: &'a [HeldExperts<D>],
    pub(crate) room: &'a mut AttentionRoom<D>,
    pub(crate) outputs: &'a mut D::Matrix,
    pub(crate) observer: &'a mut O,
}

impl<D: Device, L: Link<D>, O: Observer<D>> Layers<'_, D, L, O> {
    /// From the columns of one part or two to `normed`, the final norm of every row.
    pub(crate) fn run(
        mut self,
        parts: &[Columns],
        workspaces: &mut [Workspace<D>],
    ) -> Result<(), LinkError<D::Error>> {
        let dense = self.dense;
        let schedule = match (parts.len(), self.room.cols.context.len()) {
            (1, _) => WHOLE,
            (_, 1) => HALVES_ALONE,
            _ => HALVES_IN_GROUP,
        };
        for (columns, w) in parts.iter().zip(&mut *workspaces) {
            self.embed(columns, w)?;
        }
        for (index, layer) in dense.layers.iter().enumerate() {
            for &(turn, part) in schedule {
                let (half, w) = (Half::BOTH[part], &mut workspaces[part]);
                match turn {
                    Attend => {
                        if index > 0 {
                            self.come_home(half, w, index - 1, &layer.input_norm)?;
                        }
                        self.attend(half, w, index, layer)?;
                    }
                    Project => self.project(half, w, layer)?,
                    Route => self.route(half, w, index, layer)?,
                    Answer => {
                        answer(self.device, self.link, half, &self.experts[index], self.outputs, w)?;
                    }
                }
            }
        }
        let last = dense.layers.len() - 1;
        for (half, w) in Half::BOTH.into_iter().zip(workspaces) {
            self.come_home(half, w, last, &dense.norm)?;
            self.observer.hidden(self.device, Stage::FinalNorm, &w.normed)?;
        }
        Ok(())
    }

    fn embed(&mut self, columns: &Columns, w: &mut Workspace<D>) -> Result<(), D::Error> {
        let Self { device, dense, room, observer, .. } = self;
        device.begin(columns, &room.samples, &mut w.batch)?;
        device.embed(&dense.embedding, &w.batch, &mut w.hidden)?;
        observer.hidden(device, Stage::Embedding, &w.hidden)?;
        device.rms_norm(&w.hidden, &dense.layers[0].input_norm, &mut w.normed)
    }

    fn attend(
        &mut self,
        half: Half,
        w: &mut Workspace<D>,
        index: usize,
        layer: &DenseLayer<D>,
    ) -> Result<(), LinkError<D::Error>> {
        let Self { device, link, room, .. } = self;
        device.qkv(&w.normed, &layer.qkv, &w.batch, &mut room.cache, index, &mut w.queries)?;
        device.attention(&w.queries, &layer.sinks, &w.batch, &room.cache, index, &mut w.context)?;
        link.begin_gather(device, half, &room.cols.context, &w.context)
    }

    fn project(
        &mut self,
        half: Half,
        w: &mut Workspace<D>,
        layer: &DenseLayer<D>,
    ) -> Result<(), LinkError<D::Error>> {
        let Self { device, link, room, .. } = self;
        link.end_gather(device, half, &room.cols.context, &mut w.context, &mut w.heads)?;
        device.project(&w.heads, &layer.output, &mut w.projected)?;
        link.begin_gather(device, half, &room.cols.projected, &w.projected)
    }

    fn route(
        &mut self,
        half: Half,
        w: &mut Workspace<D>,
        index: usize,
        layer: &DenseLayer<D>,
    ) -> Result<(), LinkError<D::Error>> {
        let Self { device, link, room, observer, .. } = self;
        link.end_gather(device, half, &room.cols.projected, &mut w.projected, &mut w.attended)?;
        device.add_rms_norm(&w.attended, &layer.post_norm, &mut w.hidden, &mut w.normed)?;
        observer.hidden(device, Stage::Attention(index), &w.hidden)?;
        device.route(&w.normed, &layer.router, &mut w.routing)?;
        observer.routing(device, index, &w.routing)?;
        link.begin_dispatch(device, half, &w.normed, &w.routing)
    }

    /// What experts answered joins the rows; `next` is the norm for what comes
    /// next, which is fused into the combine.
    fn come_home(
        &mut self,
        half: Half,
        w: &mut Workspace<D>,
        index: usize,
        next: &D::Norm,
    ) -> Result<(), LinkError<D::Error>> {
        let Self { device, link, observer, .. } = self;
        let Workspace { answers, routing, hidden, normed, .. } = w;
        match link.end_combine(device, half, answers)? {
            Home::Choices => device.combine_rms_norm(answers, routing, next, hidden, normed)?,
            Home::Sums => device.add_rms_norm(answers, next, hidden, normed)?,
        }
        Ok(observer.hidden(device, Stage::Layer(index), hidden)?)
    }
}

/// The layers of a rank that has experts only: it sends no rows and gets none home.
pub(crate) fn experts_only<D: Device, L: Link<D>>(
    device: &mut D,
    link: &mut L,
    experts: &[HeldExperts<D>],
    outputs: &mut D::Matrix,
    workspaces: &mut [Workspace<D>],
) -> Result<(), LinkError<D::Error>> {
    for experts in experts {
        // In the order in which ranks with attention exchange.
        for (half, w) in Half::BOTH.into_iter().zip(&mut *workspaces) {
            link.begin_dispatch(device, half, &w.normed, &w.routing)?;
        }
        for (half, w) in Half::BOTH.into_iter().zip(&mut *workspaces) {
            answer(device, link, half, experts, outputs, w)?;
            link.end_combine(device, half, &mut w.answers)?;
        }
    }
    Ok(())
}

/// The rows of all ranks through the experts that are here.
fn answer<D: Device, L: Link<D>>(
    device: &mut D,
    link: &mut L,
    half: Half,
    experts: &HeldExperts<D>,
    outputs: &mut D::Matrix,
    w: &mut Workspace<D>,
) -> Result<(), LinkError<D::Error>> {
    let arrived = link.end_dispatch(device, half, &w.normed, &w.routing)?;
    device.run_experts(arrived.rows, arrived.groups, &experts.packed, outputs)?;
    link.begin_combine(device, half, outputs, &mut w.answers)
}
