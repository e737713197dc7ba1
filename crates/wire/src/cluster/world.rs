//! Who the ranks are and what each holds. A placement names a rank for every
//! expert of every layer, so it is packed.

use super::format::{dense_format, kv_format};
use super::{inner, v1};
use crate::InvalidField;
use crate::field::{at_most, in_range, known, present, short};
use chorale_plan::{Assignment, Carrier, Epoch, ExchangeOptions, Placement, Rank, Room, RowFormat, Shape};

/// The largest world.
pub const MAX_RANKS: u32 = 4096;
/// The deepest model.
pub const MAX_LAYERS: usize = 1024;
/// The most experts of a layer.
pub const MAX_EXPERTS: usize = 4096;
/// A DNS name and a port.
const MAX_ADDRESS_BYTES: usize = 261;

/// A rank of some world.
pub(super) fn rank(field: &str, rank: u32) -> Result<Rank, InvalidField> {
    in_range(field, Some(rank), 0..=MAX_RANKS - 1)?;
    Ok(Rank(rank))
}

/// `HOST:PORT`, as it can be dialled.
pub(super) fn address(field: &str, text: String) -> Result<String, InvalidField> {
    let text = short(field, text, MAX_ADDRESS_BYTES)?;
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]%".contains(&byte);
    let parts = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && host.bytes().all(is_legal));
    match parts.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(1..)) => Ok(text),
        _ => Err(InvalidField::new(field, format_args!("must be HOST:PORT, not {text:?}"))),
    }
}

impl From<Assignment> for v1::Assigned {
    fn from(assignment: Assignment) -> Self {
        let carrier = match assignment.carrier {
            Carrier::Frames => v1::Carrier::Frames,
            Carrier::Nccl => v1::Carrier::Nccl,
        };
        Self {
            epoch: assignment.epoch.0,
            shape: Some(assignment.shape.into()),
            rank: assignment.rank.0,
            addresses: assignment.addresses,
            placement: Some(assignment.placement.into()),
            room: Some(assignment.room.into()),
            exchange: Some(assignment.exchange.into()),
            carrier: carrier.into(),
            dense_dtype: v1::DenseFormat::from(assignment.dense_dtype).into(),
        }
    }
}

impl TryFrom<v1::Assigned> for Assignment {
    type Error = InvalidField;

    fn try_from(message: v1::Assigned) -> Result<Self, InvalidField> {
        let shape: Shape = inner("shape", message.shape)?;
        in_range("rank", Some(message.rank), 0..=shape.num_ranks - 1)?;
        if message.addresses.len() != shape.num_ranks as usize {
            let reason = format_args!("must be {}, one for each rank", shape.num_ranks);
            return Err(InvalidField::new("addresses", reason));
        }
        let addresses = message.addresses.into_iter().enumerate();
        let addresses = addresses.map(|(index, text)| address(&format!("addresses[{index}]"), text));
        let placement: Placement = inner("placement", message.placement)?;
        if let Some(layer) = stranger(&placement, shape) {
            let field = format!("placement.layers[{layer}].ranks");
            return Err(InvalidField::new(field, format_args!("must be below {}", shape.num_ranks)));
        }
        let carrier = match known("carrier", message.carrier)? {
            v1::Carrier::Unspecified => None,
            v1::Carrier::Frames => Some(Carrier::Frames),
            v1::Carrier::Nccl => Some(Carrier::Nccl),
        };
        Ok(Self {
            epoch: Epoch(message.epoch),
            shape,
            rank: Rank(message.rank),
            addresses: addresses.collect::<Result<_, _>>()?,
            placement,
            room: inner("room", message.room)?,
            exchange: inner("exchange", message.exchange)?,
            carrier: present("carrier", carrier)?,
            dense_dtype: dense_format("dense_dtype", message.dense_dtype)?,
        })
    }
}

/// The first layer that names a rank which the world does not have.
fn stranger(placement: &Placement, shape: Shape) -> Option<usize> {
    let is_stranger = |rank: &Rank| rank.0 >= shape.num_ranks;
    placement.layers.iter().position(|experts| experts.iter().flatten().any(is_stranger))
}

impl From<Shape> for v1::Shape {
    fn from(shape: Shape) -> Self {
        let Shape { tensor_parallel_size, data_parallel_size, num_ranks } = shape;
        Self { tensor_parallel_size, data_parallel_size, num_ranks }
    }
}

impl TryFrom<v1::Shape> for Shape {
    type Error = InvalidField;

    fn try_from(message: v1::Shape) -> Result<Self, InvalidField> {
        let v1::Shape { tensor_parallel_size, data_parallel_size, num_ranks } = message;
        in_range("num_ranks", Some(num_ranks), 1..=MAX_RANKS)?;
        in_range("tensor_parallel_size", Some(tensor_parallel_size), 1..=num_ranks)?;
        in_range("data_parallel_size", Some(data_parallel_size), 1..=num_ranks / tensor_parallel_size)?;
        Ok(Self { tensor_parallel_size, data_parallel_size, num_ranks })
    }
}

impl From<Placement> for v1::Placement {
    fn from(Placement { version, layers }: Placement) -> Self {
        let layer = |experts: Vec<Vec<Rank>>| {
            let has_copies = experts.iter().any(|holders| holders.len() != 1);
            let count = |holders: &Vec<Rank>| u32::try_from(holders.len()).unwrap_or(u32::MAX);
            let num_holders = if has_copies { experts.iter().map(count).collect() } else { Vec::new() };
            v1::LayerPlacement {
                ranks: experts.into_iter().flatten().map(|rank| rank.0).collect(),
                num_holders,
            }
        };
        Self { version, layers: layers.into_iter().map(layer).collect() }
    }
}

impl TryFrom<v1::Placement> for Placement {
    type Error = InvalidField;

    fn try_from(v1::Placement { version, layers }: v1::Placement) -> Result<Self, InvalidField> {
        let layers = at_most("layers", layers, MAX_LAYERS)?.into_iter().enumerate();
        let layers =
            layers.map(|(index, layer)| experts(layer).map_err(|error| error.within_item("layers", index)));
        Ok(Self { version, layers: layers.collect::<Result<_, _>>()? })
    }
}

/// For each expert of a layer, the ranks that hold it.
fn experts(message: v1::LayerPlacement) -> Result<Vec<Vec<Rank>>, InvalidField> {
    let v1::LayerPlacement { ranks, num_holders } = message;
    for each in &ranks {
        rank("ranks", *each)?;
    }
    if num_holders.is_empty() {
        let ranks = at_most("ranks", ranks, MAX_EXPERTS)?;
        return Ok(ranks.into_iter().map(|rank| vec![Rank(rank)]).collect());
    }
    let num_holders = at_most("num_holders", num_holders, MAX_EXPERTS)?;
    let mut rest = ranks.as_slice();
    let mut experts = Vec::with_capacity(num_holders.len());
    for count in num_holders {
        let Some((holders, others)) = rest.split_at_checked(count as usize) else {
            return Err(InvalidField::new("num_holders", "must add up to the number of ranks"));
        };
        if holders.is_empty() {
            return Err(InvalidField::new("num_holders", "must be above 0: every expert is somewhere"));
        }
        if !holders.is_sorted_by(|one, next| one < next) {
            return Err(InvalidField::new("ranks", "must ascend within an expert"));
        }
        experts.push(holders.iter().copied().map(Rank).collect());
        rest = others;
    }
    if !rest.is_empty() {
        return Err(InvalidField::new("num_holders", "must add up to the number of ranks"));
    }
    Ok(experts)
}

impl From<Room> for v1::Room {
    fn from(room: Room) -> Self {
        Self {
            max_step_tokens: room.max_step_tokens,
            max_step_slices: room.max_step_slices,
            block_size_tokens: room.block_size_tokens,
            num_full_blocks: room.num_full_blocks,
            num_sliding_blocks: room.num_sliding_blocks,
            kv_dtype: v1::KvFormat::from(room.kv_dtype).into(),
        }
    }
}

impl TryFrom<v1::Room> for Room {
    type Error = InvalidField;

    fn try_from(message: v1::Room) -> Result<Self, InvalidField> {
        /// Buffers are allocated by this.
        const MAX_STEP_TOKENS: u32 = 1 << 20;
        in_range("max_step_tokens", Some(message.max_step_tokens), 1..=MAX_STEP_TOKENS)?;
        in_range("max_step_slices", Some(message.max_step_slices), 1..=MAX_STEP_TOKENS)?;
        in_range("block_size_tokens", Some(message.block_size_tokens), 1..=MAX_STEP_TOKENS)?;
        Ok(Self {
            max_step_tokens: message.max_step_tokens,
            max_step_slices: message.max_step_slices,
            block_size_tokens: message.block_size_tokens,
            num_full_blocks: message.num_full_blocks,
            num_sliding_blocks: message.num_sliding_blocks,
            kv_dtype: kv_format("kv_dtype", message.kv_dtype)?,
        })
    }
}

impl From<ExchangeOptions> for v1::ExchangeOptions {
    fn from(options: ExchangeOptions) -> Self {
        let dispatch = match options.dispatch {
            RowFormat::F32 => v1::RowFormat::F32,
            RowFormat::Int8 => v1::RowFormat::Int8,
        };
        Self {
            timeout_ms: options.timeout_ms,
            dispatch: dispatch.into(),
            fast_combine: options.fast_combine,
            overlap_min_rows: options.overlap_min_rows,
        }
    }
}

impl TryFrom<v1::ExchangeOptions> for ExchangeOptions {
    type Error = InvalidField;

    fn try_from(message: v1::ExchangeOptions) -> Result<Self, InvalidField> {
        in_range("timeout_ms", Some(message.timeout_ms), 1..=super::MAX_TIMEOUT_MS)?;
        let dispatch = match known("dispatch", message.dispatch)? {
            v1::RowFormat::Unspecified => None,
            v1::RowFormat::F32 => Some(RowFormat::F32),
            v1::RowFormat::Int8 => Some(RowFormat::Int8),
        };
        Ok(Self {
            timeout_ms: message.timeout_ms,
            dispatch: present("dispatch", dispatch)?,
            fast_combine: message.fast_combine,
            overlap_min_rows: message.overlap_min_rows,
        })
    }
}
