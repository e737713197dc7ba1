// Atomic operations on integers.
#pragma once

#include "block.h"

namespace emulated {

// A block's fibers take turns on one host thread, and blocks follow each other:
// nothing comes between the steps of an operation.
template <class Type, class Change>
inline Type change(Type* pointer, Change change) {
    static_assert(std::is_integral<Type>::value, "the order of float operations would not be fixed");
    watch(pointer, sizeof(Type), Access::ATOMIC);
    const Unwatched unwatched;
    const Type before = *pointer;
    *pointer = (Type)change(before);
    return before;
}

}  // namespace emulated

template <class Type>
inline Type atomicAdd(Type* pointer, typename std::common_type<Type>::type value) {
    return emulated::change(pointer, [value](Type before) { return before + value; });
}

inline u32 count_in_order(u32* counter) { return atomicAdd(counter, 1u); }

template <class Type>
inline Type atomicSub(Type* pointer, typename std::common_type<Type>::type value) {
    return emulated::change(pointer, [value](Type before) { return before - value; });
}

template <class Type>
inline Type atomicMax(Type* pointer, typename std::common_type<Type>::type value) {
    return emulated::change(pointer, [value](Type before) { return max(before, value); });
}

template <class Type>
inline Type atomicMin(Type* pointer, typename std::common_type<Type>::type value) {
    return emulated::change(pointer, [value](Type before) { return min(before, value); });
}

template <class Type>
inline Type atomicOr(Type* pointer, typename std::common_type<Type>::type value) {
    return emulated::change(pointer, [value](Type before) { return before | value; });
}

template <class Type>
inline Type atomicAnd(Type* pointer, typename std::common_type<Type>::type value) {
    return emulated::change(pointer, [value](Type before) { return before & value; });
}

template <class Type>
inline Type atomicExch(Type* pointer, typename std::common_type<Type>::type value) {
    return emulated::change(pointer, [value](Type) { return value; });
}

template <class Type>
inline Type atomicCAS(Type* pointer, typename std::common_type<Type>::type expected, typename std::common_type<Type>::type value) {
    return emulated::change(pointer, [expected, value](Type before) { return before == expected ? value : before; });
}
