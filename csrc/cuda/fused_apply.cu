#include "dispatch.h"
#include "fused_apply.h"
#include "launch.h"
#include "scalar.cuh"
#include "sweep.cuh"
#include "table.h"

namespace lnb::cuda {
namespace {

// A rate of a parameter group: a number, or where it is on the device.
union Rate {
    double value;
    const void* device;
};
constexpr uint8_t kHere = 255;  // in place of the type of what is on the device

struct MoveTable {
    void* theta[kTensors];
    void* copy[kTensors];
    const void* y[kTensors];
    void* first[kTensors];  // row scales of a weight, m of another parameter
    float* square[kTensors];
    int64_t size[kTensors];
    int64_t width[kTensors];
    Rate lr[kTensors];
    Rate decay[kTensors];
    int32_t place[kTensors];
    int32_t number[kTensors];
    int32_t first_block[kTensors + 1];
    int32_t count;
    uint8_t move[kTensors];
    uint8_t y_type[kTensors];
    uint8_t lr_type[kTensors];
    uint8_t decay_type[kTensors];

    __host__ __device__ Piece piece(unsigned block) const { return find_piece(first_block, size, count, block); }
};
static_assert(sizeof(MoveTable) + sizeof(MoveNumbers) <= 32764, "CUDA's limit for kernel parameters");

__device__ __forceinline__ double number(const Rate& rate, uint8_t type) {
    return type == kHere ? rate.value : load(rate.device, static_cast<Type>(type), 0);
}

// The parts of a parameter's step, whatever gives its direction.
struct Lengths {
    float step;    // lr scale
    float shrink;  // what is taken off theta by weight decay and shortening
};

__device__ __forceinline__ Lengths lengths(const MoveTable& table, const MoveNumbers& numbers, int t) {
    const double rate = number(table.lr[t], table.lr_type[t]);
    const int32_t place = table.place[t];
    double shrink = rate * number(table.decay[t], table.decay_type[t]);
    if (numbers.shorter != nullptr && table.move[t] == static_cast<uint8_t>(Move::kWeight)) {
        const double factor = read(numbers.shorter + place);
        shrink = (1 - factor) + factor * shrink;  // 1 - factor (1 - shrink), without losing the low bits of a small one
    }
    return {static_cast<float>(rate * read(numbers.scales + place)), static_cast<float>(shrink)};
}

// p <- p - (step row_scale d + shrink p), formed in this order: 1 - shrink would lose the low bits of a small shrink.
template <typename X, typename Y, typename Copy>
struct MoveAlong {
    Lengths by;
    Copy* copy;
    const float* scales;  // of the rows from that of the piece's first element on; or null
    float inverse;        // of the width
    int rest;             // elements of the piece that are of its first row
    bool straddles;       // whether a pack may be of more than one row

    template <int N>
    __device__ __forceinline__ void operator()(int64_t i, Pack<X, N>& xs, const Pack<Y, N>& ys) const {
        Pack<Copy, N> copies;
        const int first = static_cast<int>(i);
        float scale = scale_of(first);
        LNB_UNROLL
        for (int k = 0; k < N; ++k) {
            if (k > 0 && straddles) scale = scale_of(first + k);
            const float old = widen(xs.value[k]);
            // Not 0 times a direction that may be NaN. In this order: a direction may be tiny, and its row's scale
            // huge.
            const float moved = by.step == 0 || scale == 0 ? 0 : by.step * (scale * widen(ys.value[k]));
            const float fresh = old - (moved + by.shrink * old);
            narrow(fresh, xs.value[k]);
            if constexpr (kCopies) narrow(fresh, copies.value[k]);
        }
        if constexpr (kCopies) write_pack<N>(copy + i, copies);
    }

    // The quotient by a width below the piece's size, without a division: (n + 1/2) / width is at least 1/2 / width
    // from any integer, and the product is off by less, 2^-22 of at most 2^13 / width.
    __device__ __forceinline__ float scale_of(int element) const {
        if (scales == nullptr) return 1;
        const int beyond = element - rest;
        const int row = beyond < 0 ? 0 : 1 + static_cast<int>((static_cast<float>(beyond) + 0.5f) * inverse);
        return read(scales + row);
    }

    static constexpr bool kCopies = !std::is_same_v<X, Copy>;
};
static_assert(kPieceSize <= 1 << 13, "the quotient in scale_of is exact up to this");

template <typename Y, typename X, typename Copy>
__device__ __forceinline__ void move_along(const MoveTable& table, const MoveNumbers& numbers, const Piece& piece) {
    const int t = piece.tensor;
    X* x = static_cast<X*>(table.theta[t]) + piece.begin;
    const Y* y = static_cast<const Y*>(table.y[t]) + piece.begin;
    MoveAlong<X, Y, Copy> op{lengths(table, numbers, t), nullptr, nullptr, 0, 0, false};
    constexpr int N = kVector<X, Y>;
    bool vectors = aligned<N>(x) && aligned<N>(y);
    if constexpr (op.kCopies) {
        op.copy = static_cast<Copy*>(table.copy[t]) + piece.begin;
        vectors = vectors && aligned<N>(op.copy);
    }
    if (table.move[t] == static_cast<uint8_t>(Move::kWeight)) {
        const int64_t width = table.width[t], row = piece.begin / width, rest = width - piece.begin % width;
        op.scales = static_cast<const float*>(table.first[t]) + row;
        op.rest = static_cast<int>(rest < kPieceSize ? rest : kPieceSize);
        op.inverse = 1.0f / static_cast<float>(width);
        op.straddles = width % N != 0;
    }
    sweep<2, int>(x, y, piece.size, vectors, true, op);
}

// Adam's rule with the momentum's update: see fused_apply.h.
template <typename X, typename G, typename Copy>
struct MoveByAdam {
    Lengths by;
    const MoveNumbers& numbers;
    float share, back;  // of the average; 1 / correction
    bool found;         // an entry without a finite direction

    template <int N>
    __device__ __forceinline__ void operator()(Pack<X, N>& xs, const Pack<G, N>& gs, Pack<float, N>& ms,
                                               Pack<float, N>& vs, Pack<Copy, N>& copies) {
        LNB_UNROLL
        for (int k = 0; k < N; ++k) {
            const float old = widen(xs.value[k]), gradient = widen(gs.value[k]);
            ms.value[k] = numbers.keep * ms.value[k] + numbers.add * gradient;
            const float ahead = share * ms.value[k] + (numbers.take == 0 ? 0 : numbers.take * gradient);
            const float cut = squarable(gradient), difference = cut * cut - vs.value[k];
            // The form that ends at the new value exactly where the weight is 1.
            vs.value[k] = numbers.weight < 0.5f ? vs.value[k] + numbers.weight * difference
                                                : cut * cut - difference * (1 - numbers.weight);
            float direction = squarable(ahead) / (sqrtf(vs.value[k] * back) + numbers.epsilon);
            if (!(direction - direction == 0)) {  // NaN or infinite
                found = true;
                direction = 0;
            }
            const float fresh = old - (by.step * direction + by.shrink * old);
            narrow(fresh, xs.value[k]);
            narrow(fresh, copies.value[k]);
        }
    }

    __device__ __forceinline__ float squarable(float x) const {  // NaN stays NaN
        return x > numbers.most ? numbers.most : x < -numbers.most ? -numbers.most : x;
    }
};

template <typename G, typename X, typename Copy>
__device__ __forceinline__ void move_by_adam(const MoveTable& table, const MoveNumbers& numbers, const Piece& piece) {
    constexpr int N = 4;  // elements that make 16 bytes of the averages
    constexpr bool kCopies = !std::is_same_v<X, Copy>;
    const int t = piece.tensor;
    const int32_t number = table.number[t];
    X* x = static_cast<X*>(table.theta[t]) + piece.begin;
    const G* g = static_cast<const G*>(table.y[t]) + piece.begin;
    float* m = static_cast<float*>(table.first[t]) + piece.begin;
    float* v = table.square[t] + piece.begin;
    Copy* copy = nullptr;
    if constexpr (kCopies) copy = static_cast<Copy*>(table.copy[t]) + piece.begin;
    const bool vectors = aligned<N>(x) && aligned<N>(g) && aligned<N>(m) && aligned<N>(v) && aligned<N>(copy);
    MoveByAdam<X, G, Copy> op{lengths(table, numbers, t), numbers, static_cast<float>(read(numbers.shares + number)),
                              1.0f / static_cast<float>(read(numbers.corrections + number)), false};
    const int size = static_cast<int>(piece.size), packs = vectors ? size / N : 0;
    for (int pack = static_cast<int>(threadIdx.x); pack < packs; pack += kThreads) {
        // One pack of each of four tensors is as much in flight as four of one.
        const Words<X, N> x_words = read_words<N>(x + pack * N);
        const Words<G, N> g_words = read_words<N>(g + pack * N);
        const Words<float, N> m_words = read_words<N>(m + pack * N), v_words = read_words<N>(v + pack * N);
        Pack<X, N> xs = unpack(x_words);
        Pack<float, N> ms = unpack(m_words), vs = unpack(v_words);
        Pack<Copy, N> copies;
        op(xs, unpack(g_words), ms, vs, copies);
        write_pack<N>(x + pack * N, xs);
        write_pack<N>(m + pack * N, ms);
        write_pack<N>(v + pack * N, vs);
        if constexpr (kCopies) write_pack<N>(copy + pack * N, copies);
    }
    for (int i = packs * N + static_cast<int>(threadIdx.x); i < size; i += kThreads) {
        Pack<X, 1> xs{{read(x + i)}};
        Pack<float, 1> ms{{read(m + i)}}, vs{{read(v + i)}};
        Pack<Copy, 1> copies;
        op(xs, Pack<G, 1>{{read(g + i)}}, ms, vs, copies);
        write(x + i, xs.value[0]);
        write(m + i, ms.value[0]);
        write(v + i, vs.value[0]);
        if constexpr (kCopies) write(copy + i, copies.value[0]);
    }
    if (op.found && numbers.finite != nullptr) write(numbers.finite + number, false);  // by any number of threads
}

template <typename X, typename Copy>
__global__ void __launch_bounds__(kThreads, kBlocks)
    fused_apply_kernel(LNB_PARAMETER(MoveTable) table, LNB_PARAMETER(MoveNumbers) numbers) {
    if (numbers.ok != nullptr && !read(numbers.ok)) return;
    const Piece piece = table.piece(blockIdx.x);
    const Type type = static_cast<Type>(table.y_type[piece.tensor]);
    if (table.move[piece.tensor] == static_cast<uint8_t>(Move::kOther)) {
        if (type == Type::kFloat32) return move_by_adam<float, X, Copy>(table, numbers, piece);
        if (type == Type::kBFloat16) return move_by_adam<BFloat16, X, Copy>(table, numbers, piece);
        return move_by_adam<Half, X, Copy>(table, numbers, piece);
    }
    if (type == Type::kFloat32) return move_along<float, X, Copy>(table, numbers, piece);
    return move_along<BFloat16, X, Copy>(table, numbers, piece);
}

void set(Rate& rate, uint8_t& type, const Scalar& scalar) {
    if (scalar.device == nullptr) {
        rate.value = scalar.value;
        type = kHere;
    } else {
        rate.device = scalar.device;
        type = static_cast<uint8_t>(scalar.type);
    }
}

// The launches of all entries whose parameters are of this type, with a master or without.
template <typename X, typename Copy>
void start(const MoveEntry* entries, int64_t count, Type parameter, const MoveNumbers& numbers, void* stream) {
    MoveTable table;
    table.count = 0;
    int64_t blocks = 0;
    const auto flush = [&] {
        launch("fused_step.apply", fused_apply_kernel<X, Copy>, {blocks, kThreads}, stream, table, numbers);
        table.count = 0;
        blocks = 0;
    };
    for (const MoveEntry* entry = entries; entry != entries + count; ++entry) {
        const int64_t own = pieces(entry->size);
        if (own == 0 || entry->parameter != parameter || (entry->copy == nullptr) != std::is_same_v<X, Copy>) continue;
        if (table.count == kTensors || blocks + own > INT32_MAX) flush();
        const int t = table.count++;
        table.theta[t] = entry->theta;
        table.copy[t] = entry->copy;
        table.y[t] = entry->y;
        table.first[t] = entry->move == Move::kWeight ? const_cast<float*>(entry->row_scales) : entry->average;
        table.square[t] = entry->square;
        table.size[t] = entry->size;
        table.width[t] = entry->width;
        set(table.lr[t], table.lr_type[t], entry->lr);
        set(table.decay[t], table.decay_type[t], entry->decay);
        table.place[t] = entry->place;
        table.number[t] = entry->number;
        table.move[t] = static_cast<uint8_t>(entry->move);
        table.y_type[t] = static_cast<uint8_t>(entry->y_type);
        table.first_block[t] = static_cast<int32_t>(blocks);
        blocks += own;
        table.first_block[t + 1] = static_cast<int32_t>(blocks);
    }
    flush();
}

}  // namespace

bool moves(Move move, Type parameter, bool has_master, Type y) {
    const bool narrow = parameter == Type::kBFloat16 || parameter == Type::kFloat16;
    if (parameter != Type::kFloat32 && !narrow) return false;
    if (has_master && !narrow) return false;
    return y == Type::kFloat32 || y == Type::kBFloat16 || (y == Type::kFloat16 && move == Move::kOther);
}

void fused_apply(const MoveEntry* entries, int64_t count, const MoveNumbers& numbers, void* stream) {
    for (const MoveEntry* entry = entries; entry != entries + count; ++entry) {
        require_kernel(moves(entry->move, entry->parameter, entry->copy != nullptr, entry->y_type));
    }
    start<float, float>(entries, count, Type::kFloat32, numbers, stream);
    start<BFloat16, BFloat16>(entries, count, Type::kBFloat16, numbers, stream);
    start<Half, Half>(entries, count, Type::kFloat16, numbers, stream);
    start<float, BFloat16>(entries, count, Type::kBFloat16, numbers, stream);
    start<float, Half>(entries, count, Type::kFloat16, numbers, stream);
}

}  // namespace lnb::cuda
