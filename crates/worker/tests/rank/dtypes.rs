//! Weights in int8 and pages in fp8 or bf16: one answer for every world, and
//! ranks that go from one type to another.

use crate::world::{World, alone, open, shape, start_ranks, uneven};
use chorale_plan::{Assignment, DenseFormat, KvFormat, Sample, Shape};

fn kept_as(dense_dtype: DenseFormat, kv_dtype: KvFormat) -> impl Fn(&mut Assignment) {
    move |assignment| {
        assignment.dense_dtype = dense_dtype;
        assignment.room.kv_dtype = kv_dtype;
    }
}

/// A row's scale is of the row, and a head's exponent of the head: no split
/// goes through either.
#[test]
fn every_world_gives_the_same_bits_in_eight() {
    for model in ["a-small", "b-awkward"] {
        let checkpoint = open(model);
        let found = |shape: Shape| -> Vec<Vec<Sample>> {
            let ranks = start_ranks(shape.num_ranks);
            let placement = uneven(&checkpoint, shape.num_ranks, 0);
            let change = kept_as(DenseFormat::Int8, KvFormat::Fp8);
            World::changed(ranks, &checkpoint, (1, shape), placement, &change).generate(4, 1, |_| 0)
        };
        let expected = found(Shape::SOLO);
        assert!(expected != alone(&checkpoint, 4), "{model}: something is rounded");
        for shape in [shape(2, 1, 2), shape(1, 2, 2), shape(2, 1, 3)] {
            assert!(found(shape) == expected, "{model} on {shape:?}");
        }
    }
}

#[test]
fn a_rank_goes_from_one_type_to_another_and_back() {
    let checkpoint = open("a-small");
    let ranks = start_ranks(1);
    let mut epoch = 0;
    let mut answer = |dense_dtype, kv_dtype| {
        epoch += 1;
        let change = kept_as(dense_dtype, kv_dtype);
        let placement = uneven(&checkpoint, 1, 0);
        let world = World::changed(ranks.clone(), &checkpoint, (epoch, Shape::SOLO), placement, &change);
        let (first, last) = world.loaded[0].first().zip(world.loaded[0].last()).unwrap();
        let loaded = last.bytes - first.bytes;
        (world.generate(4, 1, |_| 0), loaded)
    };
    let (exact, all) = answer(DenseFormat::Bf16, KvFormat::F32);
    let (in_bf16, again) = answer(DenseFormat::Bf16, KvFormat::Bf16);
    assert_eq!(again, 0, "pages are no weights");
    assert!(in_bf16 != exact);
    let (in_int8, dense) = answer(DenseFormat::Int8, KvFormat::F32);
    assert!(0 < dense && dense < all, "{dense} of {all}: experts stay");
    assert!(in_int8 != exact);
    assert!(answer(DenseFormat::Bf16, KvFormat::F32).0 == exact);
}
