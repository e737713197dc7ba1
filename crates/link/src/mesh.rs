//! A world of any shape: every rank connected with every other.
//!
//! Rows go out with the experts that they want, and each choice's answer comes
//! home to all ranks of the row's group. A rank of that group that holds the
//! expert needs no dispatch: it has the row. All ranks of a group reckon alike
//! who computes what, so a combine carries no addresses, only a digest that
//! tells whether they did.
//!
//! In each exchange a rank sends to all before it receives from all, in rank
//! order. What lies between the two is kept for each half of a step.

use crate::layout::{self, Layout};
use crate::loads::Loads;
use crate::round::{self, Asked, Round};
use crate::rows::{self, Format};
use crate::transport::{Fault, Transport};
use crate::wire::Wire;
use crate::{Arrived, Half, Home, Link, LinkError};
use bytes::Bytes;
use chorale_device::{Choice, Device, Precision};
use chorale_plan::{Carrier, Epoch, ExchangeOptions, Placement, Rank, Shape};
use std::sync::Arc;
use std::time::Duration;

/// A rank's place in a world, and the sizes of what it exchanges.
#[derive(Clone, Debug)]
pub struct Place {
    /// The membership.
    pub epoch: Epoch,
    /// How the ranks are grouped.
    pub shape: Shape,
    /// The rank's own number.
    pub rank: Rank,
    /// How rows travel.
    pub exchange: ExchangeOptions,
    /// By what.
    pub carrier: Carrier,
    /// Layers of the model.
    pub num_layers: usize,
    /// Experts of a layer.
    pub num_experts: usize,
    /// Choices of a row.
    pub top_k: usize,
    /// Columns of a row that goes to experts.
    pub hidden_size: usize,
    /// Rows of one home in a step.
    pub max_rows: usize,
}

impl Place {
    /// Rows that may come to one rank's experts in a step: those of all homes.
    pub fn max_arrivals(&self) -> usize {
        self.max_rows.saturating_mul(self.shape.data_parallel_size as usize)
    }

    /// Refuses, with the reason, a shape without this rank, and a placement that
    /// is none for the shape and the model.
    pub fn check(&self, placement: &Placement) -> Result<(), String> {
        layout::check_rank(self.shape, self.rank)?;
        layout::check(placement, self.shape, self.num_layers, self.num_experts)
    }
}

/// Why a rank cannot take its place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError<E> {
    /// The device has no room.
    #[error(transparent)]
    Device(#[from] E),
    /// Shape or placement are none for this model.
    #[error("the place does not fit the model: {reason}")]
    Unfit {
        /// Why.
        reason: String,
    },
}

impl<E> PlaceError<E> {
    fn unfit(reason: String) -> Self {
        Self::Unfit { reason }
    }
}

/// The link of a rank among others.
pub struct Mesh<D: Device, T> {
    wire: Wire<T>,
    layout: Layout,
    place: Place,
    format: Format,
    placement: Placement,
    /// By layer.
    groups: Vec<D::Groups>,
    loads: Arc<Loads>,
    /// By half: columns that are on their way, and rows.
    parts: [Bytes; 2],
    rounds: [Round; 2],
    /// Of the half that is computed.
    arrived: D::Matrix,
}

impl<D: Device, T: Transport> Mesh<D, T> {
    /// Takes a place in a world whose ranks `transport` connects.
    pub fn new(
        device: &mut D,
        transport: T,
        place: Place,
        placement: Placement,
    ) -> Result<Self, PlaceError<D::Error>> {
        place.check(&placement).map_err(PlaceError::unfit)?;
        let format = Format {
            cols: place.hidden_size,
            top_k: place.top_k,
            max_rows: place.max_rows,
            rows: place.exchange.dispatch,
            has_weights: place.exchange.fast_combine,
        };
        let groups = groups(device, &place, &placement)?;
        Ok(Self {
            wire: Wire::new(transport, &place),
            layout: Layout::new(place.shape, place.rank),
            format,
            groups,
            loads: Arc::new(Loads::new(place.num_layers, place.num_experts)),
            parts: Default::default(),
            rounds: Default::default(),
            arrived: device.matrix(place.max_arrivals(), place.hidden_size, Precision::Half)?,
            placement,
            place,
        })
    }

    /// The place that was taken.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where the experts are.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Refuses a placement that is none for this world.
    pub fn check(&self, placement: &Placement) -> Result<(), PlaceError<D::Error>> {
        self.place.check(placement).map_err(PlaceError::unfit)
    }

    /// Goes over to another placement, between two steps.
    pub fn go_over(&mut self, device: &mut D, placement: Placement) -> Result<(), PlaceError<D::Error>> {
        self.groups = groups(device, &self.place, &placement)?;
        self.placement = placement;
        Ok(())
    }

    /// Rows that came to each expert of this rank.
    pub fn loads(&self) -> &Arc<Loads> {
        &self.loads
    }

    /// How long was waited for other ranks since this was last asked.
    pub fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.wire.waited)
    }

    /// Sends the group's rows out.
    fn send_rows(&mut self, half: Half, values: &[f32]) -> Result<(), Fault> {
        for to in self.layout.sends_to() {
            let Asked { wanted, rows, .. } = &self.rounds[half as usize].asked[to.0 as usize];
            self.wire.send(half, to, self.format.write(wanted, rows, values).into())?;
        }
        Ok(())
    }

    /// What other groups ask of this rank, by group; `None` for its own.
    fn receive_rows(&mut self, half: Half) -> Result<Vec<Option<rows::Dispatch>>, Fault> {
        let holders = &self.placement.layers[self.wire.layer(half)];
        let rank = self.layout.rank;
        let is_here = |expert: u32| holders.get(expert as usize).is_some_and(|ranks| ranks.contains(&rank));
        let mut dispatches = Vec::new();
        for group in self.layout.groups() {
            if group.contains(&rank.0) {
                dispatches.push(None);
                continue;
            }
            let from = Layout::sender(&group, rank);
            let payload = self.wire.receive(half, from)?;
            let dispatch = self.format.read(&payload, is_here);
            dispatches.push(Some(dispatch.map_err(|reason| Fault::Malformed { rank: from, reason })?));
        }
        Ok(dispatches)
    }

    /// Sends answers to all ranks of the homes, and keeps those for its own.
    fn send_answers(&mut self, half: Half, outputs: &[f32]) -> Result<(), Fault> {
        let cols = self.place.hidden_size;
        let own = self.layout.rank;
        let round = &mut self.rounds[half as usize];
        let (mut outputs, mut wanted) = (outputs, &round.wanted[..]);
        for (group, task) in self.layout.groups().zip(&round.tasks) {
            let (task_outputs, task_wanted);
            (task_outputs, outputs) = outputs.split_at(task.num_choices * cols);
            (task_wanted, wanted) = wanted.split_at(task.num_choices);
            let summed =
                self.place.exchange.fast_combine.then(|| round::sums(task_wanted, task_outputs, cols));
            let answers = summed.as_deref().unwrap_or(task_outputs);
            if group.contains(&own.0) {
                round.own_answers = answers.to_vec();
            }
            let mut others = group.map(Rank).filter(|&member| member != own).peekable();
            if others.peek().is_some() {
                let payload = Bytes::from(rows::write_combine(task.digest, answers));
                others.try_for_each(|member| self.wire.send(half, member, payload.clone()))?;
            }
        }
        Ok(())
    }

    /// Lays out the answers that come for the group's rows.
    fn receive_answers(&mut self, half: Half) -> Result<Vec<f32>, Fault> {
        if self.layout.group.is_none() {
            return Ok(Vec::new());
        }
        let cols = self.place.hidden_size;
        let is_fast = self.place.exchange.fast_combine;
        let round = &self.rounds[half as usize];
        let num_rows = round.num_rows * if is_fast { 1 } else { self.place.top_k };
        let mut home = vec![0.0; num_rows * cols];
        for (from, asked) in self.layout.shape.ranks().zip(&round.asked) {
            let places = if is_fast { &asked.rows } else { &asked.slots };
            if from == self.layout.rank {
                lay_out(&mut home, (places, cols), round.own_answers.iter().copied(), is_fast);
                continue;
            }
            let payload = self.wire.receive(half, from)?;
            let answers = rows::read_combine(&payload, rows::digest(&asked.wanted), places.len() * cols);
            let answers = answers.map_err(|reason| Fault::Malformed { rank: from, reason })?;
            lay_out(&mut home, (places, cols), answers, is_fast);
        }
        Ok(home)
    }

    /// True for a world whose one rank's outputs are home as they are.
    fn is_alone(&self) -> bool {
        self.layout.shape.num_ranks == 1 && !self.place.exchange.fast_combine
    }
}

/// Puts rows in their places: each choice has one of its own, sums share theirs.
fn lay_out(
    home: &mut [f32],
    (places, cols): (&[u32], usize),
    mut values: impl Iterator<Item = f32>,
    is_sum: bool,
) {
    for &place in places {
        let row = &mut home[place as usize * cols..][..cols];
        let values = values.by_ref().take(cols);
        if is_sum {
            round::add(row, values);
        } else {
            row.iter_mut().zip(values).for_each(|(to, value)| *to = value);
        }
    }
}

/// The groups of each layer's local experts.
fn groups<D: Device>(
    device: &mut D,
    place: &Place,
    placement: &Placement,
) -> Result<Vec<D::Groups>, PlaceError<D::Error>> {
    place.check(placement).map_err(PlaceError::unfit)?;
    let layers = 0..place.num_layers;
    Ok(layers
        .map(|layer| device.groups(&placement.experts_of(place.rank, layer)))
        .collect::<Result<_, _>>()?)
}

impl<D: Device, T: Transport> Link<D> for Mesh<D, T> {
    fn begin(&mut self, step: u64) {
        self.wire.begin(step);
    }

    fn begin_gather(
        &mut self,
        device: &mut D,
        half: Half,
        cols: &[usize],
        part: &D::Matrix,
    ) -> Result<(), LinkError<D::Error>> {
        let Self { wire, layout, parts, .. } = self;
        let group = layout.group.clone().expect("ranks with experts only gather nothing");
        assert_eq!(cols.len(), group.len(), "columns of each rank of the group");
        if group.len() > 1 {
            let mut payload = Vec::new();
            rows::write_f32s(&device.read(part)?, &mut payload);
            let part = Bytes::from(payload);
            wire.send_part(half, layout.rank, group, &part).map_err(|fault| wire.fault(half, fault))?;
            parts[half as usize] = part;
        }
        Ok(())
    }

    fn end_gather(
        &mut self,
        device: &mut D,
        half: Half,
        cols: &[usize],
        part: &mut D::Matrix,
        whole: &mut D::Matrix,
    ) -> Result<(), LinkError<D::Error>> {
        let Self { wire, layout, parts, .. } = self;
        let group = layout.group.clone().expect("ranks with experts only gather nothing");
        if group.len() == 1 {
            std::mem::swap(part, whole);
        } else {
            let own = std::mem::take(&mut parts[half as usize]);
            let gathered = wire.join_parts(half, layout.rank, group, cols, &own);
            device.write(&gathered.map_err(|fault| wire.fault(half, fault))?, whole)?;
        }
        wire.next_gather(half);
        Ok(())
    }

    fn begin_dispatch(
        &mut self,
        device: &mut D,
        half: Half,
        rows: &D::Matrix,
        routing: &D::Routing,
    ) -> Result<(), LinkError<D::Error>> {
        self.wire.come_to(half, 2);
        let routes = device.read_routing(routing)?;
        let round = Round::ask(&self.layout, &self.placement.layers[self.wire.layer(half)], &routes);
        let values = if round.is_sent(&self.layout) { device.read(rows)? } else { Vec::new() };
        self.rounds[half as usize] = round;
        self.send_rows(half, &values).map_err(|fault| self.wire.fault(half, fault))
    }

    fn end_dispatch<'a>(
        &'a mut self,
        device: &mut D,
        half: Half,
        rows: &'a D::Matrix,
        _routing: &D::Routing,
    ) -> Result<Arrived<'a, D>, LinkError<D::Error>> {
        let layer = self.wire.layer(half);
        let dispatches = self.receive_rows(half).map_err(|fault| self.wire.fault(half, fault))?;
        let is_mixed = dispatches.iter().flatten().any(|dispatch| !dispatch.wanted.is_empty());
        let round = &mut self.rounds[half as usize];
        let own = std::mem::take(&mut round.asked[self.layout.rank.0 as usize]);
        let values = if is_mixed && !own.rows.is_empty() { device.read(rows)? } else { Vec::new() };
        let cols = self.place.hidden_size;
        let mut arrived = Vec::new();
        for dispatch in dispatches {
            let first_row = (arrived.len() / cols) as u32;
            match dispatch {
                Some(dispatch) => {
                    round.add_task(&dispatch.wanted, first_row);
                    arrived.extend(dispatch.values);
                }
                None => {
                    round.add_task(&own.wanted, first_row);
                    if is_mixed {
                        let picked = own.rows.iter().map(|&row| &values[row as usize * cols..][..cols]);
                        picked.for_each(|row| arrived.extend(row));
                    }
                }
            }
        }
        // Without rows of others, the group's own are computed where they are.
        let row_of = |row: u32| if is_mixed { row } else { own.rows[row as usize] };
        let choices = round.wanted.iter().map(|wanted| wanted.choice);
        let choices: Vec<Choice> =
            choices.map(|Choice { row, expert }| Choice { row: row_of(row), expert }).collect();
        round.asked[self.layout.rank.0 as usize] = own;
        self.loads.count(layer, choices.iter().map(|choice| choice.expert));
        device.group_choices(&choices, &mut self.groups[layer])?;
        if is_mixed {
            device.write(&arrived, &mut self.arrived)?;
        }
        let rows = if is_mixed { &self.arrived } else { rows };
        Ok(Arrived { rows, groups: &self.groups[layer] })
    }

    fn begin_combine(
        &mut self,
        device: &mut D,
        half: Half,
        outputs: &mut D::Matrix,
        home: &mut D::Matrix,
    ) -> Result<(), LinkError<D::Error>> {
        self.wire.come_to(half, 3);
        if self.is_alone() {
            // Slots are in order as they are.
            std::mem::swap(outputs, home);
            return Ok(());
        }
        let outputs = device.read(outputs)?;
        self.send_answers(half, &outputs).map_err(|fault| self.wire.fault(half, fault))
    }

    fn end_combine(
        &mut self,
        device: &mut D,
        half: Half,
        home: &mut D::Matrix,
    ) -> Result<Home, LinkError<D::Error>> {
        if !self.is_alone() {
            let answers = self.receive_answers(half).map_err(|fault| self.wire.fault(half, fault))?;
            device.write(&answers, home)?;
        }
        self.wire.next_layer(half);
        Ok(if self.place.exchange.fast_combine { Home::Sums } else { Home::Choices })
    }
}
