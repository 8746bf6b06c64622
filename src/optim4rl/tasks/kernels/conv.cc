// A convolution over few ones and the dense layer on it, forward and backward, for one instruction
// set; conv.h says which layers.
//
// The build compiles this file several times, each with another -march and ARITHMETIC.

#include "conv.h"

#include "simd.h"

#ifndef ARITHMETIC
#error "ARITHMETIC: the name of the table that this compilation defines, e.g. avx2"
#endif
#define TO_STRING(x) #x
#define NAME_OF(x) TO_STRING(x)

namespace optim4rl {
namespace {

constexpr int64_t kPad = 16;    // rows of a workspace are whole vectors of any instruction set
constexpr int64_t kBlock = 64;  // observations that touch a position, taken together
constexpr int kRows = 4;        // of a register tile

static_assert(kPad % kLanes == 0 && kPad % kRows == 0 && kBlock % kRows == 0, "whole tiles");

// ---------------------------------------------------------------------------------------------
// Rows and matrices of a workspace
// ---------------------------------------------------------------------------------------------

int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// Hands out a workspace piece by piece; without one, it adds up how much is needed.
struct Pieces {
  float* at;
  int64_t floats = 0;

  template <class T = float>
  T* take(int64_t n) {
    const int64_t offset = floats;
    floats += padded(n * static_cast<int64_t>(sizeof(T) / sizeof(float)));
    return at == nullptr ? nullptr : reinterpret_cast<T*>(at + offset);
  }
};

void fill(float* row, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i) row[i] = value;
}

// Rows that may lie anywhere as padded rows, and back. Mostly they are whole vectors.
void pad_rows(const float* rows, int64_t count, int64_t n, float* out) {
  if (n == padded(n)) {
    for (int64_t i = 0; i < count * n; i += kLanes) store(out + i, load_anywhere(rows + i));
    return;
  }
  for (int64_t row = 0; row < count; ++row, rows += n, out += padded(n)) {
    __builtin_memcpy(out, rows, n * sizeof(float));
    fill(out + n, padded(n) - n, 0.0f);
  }
}

void unpad_rows(const float* rows, int64_t count, int64_t n, float* out) {
  if (n == padded(n)) {
    for (int64_t i = 0; i < count * n; i += kLanes) store_anywhere(out + i, load(rows + i));
    return;
  }
  for (int64_t row = 0; row < count; ++row, rows += padded(n), out += n)
    __builtin_memcpy(out, rows, n * sizeof(float));
}

// to += factor * row, a padded one.
FORCE_INLINE void add_row(float* to, float factor, const float* row, int64_t padded_size) {
  for (int64_t i = 0; i < padded_size; i += kLanes)
    store(to + i, load(to + i) + factor * load(row + i));
}

// A matrix by its element in (row, column): row * row_stride + column * column_stride.
struct Matrix {
  const float* at;
  int64_t row_stride, column_stride;
};

// out += a b for kRows rows and T vectors of columns; b and out in padded rows.
template <int T>
FORCE_INLINE void multiply_tile(const Matrix& a, const float* b, int64_t b_stride, int64_t depth,
                                float* out, int64_t out_stride) {
  Vec sums[kRows][T];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[r][t] = load(out + r * out_stride + t * kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    const float* factor = a.at + k * a.column_stride;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
        sums[r][t] += factor[r * a.row_stride] * load(b + k * b_stride + t * kLanes);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) store(out + r * out_stride + t * kLanes, sums[r][t]);
}

// out += a b; there is room for whole tiles of rows, and rows of b and out are padded.
void multiply_add(int64_t rows, int64_t columns, int64_t depth, Matrix a, const float* b,
                  float* out) {
  const int64_t stride = padded(columns);
  for (int64_t row = 0; row < rows; row += kRows, a.at += kRows * a.row_stride) {
    int64_t column = 0;
    for (; column + 2 * kLanes <= stride; column += 2 * kLanes)
      multiply_tile<2>(a, b + column, stride, depth, out + row * stride + column, stride);
    for (; column < stride; column += kLanes)
      multiply_tile<1>(a, b + column, stride, depth, out + row * stride + column, stride);
  }
}

// Four numbers side by side, whatever the instruction set.
typedef float Four __attribute__((vector_size(16), may_alias));

FORCE_INLINE Four interleave_low(Four a, Four b) { return Four{a[0], b[0], a[1], b[1]}; }
FORCE_INLINE Four interleave_high(Four a, Four b) { return Four{a[2], b[2], a[3], b[3]}; }

// A matrix [rows, columns] whose sizes are padded.
void transpose(const float* in, int64_t rows, int64_t columns, float* out) {
  for (int64_t r = 0; r < rows; r += 4)
    for (int64_t c = 0; c < columns; c += 4) {
      Four x[4];
      for (int i = 0; i < 4; ++i) __builtin_memcpy(&x[i], in + (r + i) * columns + c, sizeof x[i]);
      const Four even_low = interleave_low(x[0], x[2]), even_high = interleave_high(x[0], x[2]);
      const Four odd_low = interleave_low(x[1], x[3]), odd_high = interleave_high(x[1], x[3]);
      const Four y[4] = {interleave_low(even_low, odd_low), interleave_high(even_low, odd_low),
                         interleave_low(even_high, odd_high), interleave_high(even_high, odd_high)};
      for (int i = 0; i < 4; ++i) __builtin_memcpy(out + (c + i) * rows + r, &y[i], sizeof y[i]);
    }
}

// ---------------------------------------------------------------------------------------------
// What the ones touch
// ---------------------------------------------------------------------------------------------

// visit(position, tap) for every position that a one reaches: tap (i, j) carries one at (row,
// column) to (row - i, column - j). An absent one reaches none.
template <class Visit>
FORCE_INLINE void for_touched(const Layers& l, int32_t place, const Visit& visit) {
  if (place < 0 || place >= l.size) return;
  const int32_t c = place % static_cast<int32_t>(l.shape[2]);
  const int32_t ab = place / static_cast<int32_t>(l.shape[2]);
  const int32_t b = ab % static_cast<int32_t>(l.shape[1]);
  const int32_t a = ab / static_cast<int32_t>(l.shape[1]);
  const int32_t row = l.channels_first ? b : a, column = l.channels_first ? c : b;
  const int32_t channel = l.channels_first ? a : c;
  for (int32_t i = 0; i <= (row > 0); ++i)
    for (int32_t j = 0; j <= (column > 0); ++j)
      visit((row - i) * static_cast<int32_t>(l.width) + column - j,
            (2 * i + j) * static_cast<int32_t>(l.channels) + channel);
}

void list(const Layers& l, const Agent& agent, int64_t begin, int64_t end,
          const Touches& touches) {
  for (int64_t p = 0; p < l.positions; ++p) touches.first[p] = -1;
  int32_t count = 0;
  // What is listed last comes first.
  for (int64_t observation = end - 1; observation >= begin; --observation)
    for (int64_t one = 0; one < l.ones; ++one)
      for_touched(l, agent.places[one * l.batch + observation], [&](int32_t position, int32_t tap) {
        touches.all[count] = {static_cast<int32_t>(observation), tap, touches.first[position]};
        touches.first[position] = count++;
      });
}

// What is left of the touches of a position.
struct Run {
  const Touch* all;
  int32_t at;

  Run(const Touches& touches, int64_t position)
      : all(touches.all), at(touches.first[position]) {}

  bool is_empty() const { return at < 0; }
  const Touch& front() const { return all[at]; }
  bool is_of(int32_t observation) const {
    return !is_empty() && front().observation == observation;
  }
  void pop() { at = front().next; }
};

// The convolution's parameters in padded rows, what it gives where no one is near, and what it
// gives some observations at one position.
struct Convolution {
  float *taps, *bias, *rest;     // [taps, filters], [filters], [filters]
  float *before, *values;        // [kBlock, filters]: before the ReLU, and after it beyond `rest`
  int32_t* observations;         // [kBlock]
  int64_t row;                   // floats from one row of filters to the next

  Convolution(const Layers& l, Pieces& pieces) : row(padded(l.filters)) {
    taps = pieces.take(l.taps * row);
    bias = pieces.take(row);
    rest = pieces.take(row);
    before = pieces.take(kBlock * row);
    values = pieces.take(kBlock * row);
    observations = pieces.take<int32_t>(kBlock);
  }

  void read(const Layers& l, const Agent& agent) const {
    pad_rows(agent.conv_kernel, l.taps, l.filters, taps);
    pad_rows(agent.conv_bias, 1, l.filters, bias);
    for (int64_t f = 0; f < row; f += kLanes) store(rest + f, relu(load(bias + f)));
  }

  bool rests() const {
    for (int64_t f = 0; f < row; ++f)
      if (!(rest[f] == 0.0f)) return true;
    return false;
  }

  // As many observations of a run as fit in a block, taken from its front; returns how many.
  int64_t take(Run& run) const {
    int64_t count = 0;
    for (; count < kBlock && !run.is_empty(); ++count) {
      const int32_t observation = observations[count] = run.front().observation;
      float *const sum = before + count * row, *const value = values + count * row;
      pad_rows(bias, 1, row, sum);
      for (; run.is_of(observation); run.pop())
        add_row(sum, 1.0f, taps + run.front().tap * row, row);
      for (int64_t f = 0; f < row; f += kLanes)
        store(value + f, relu(load(sum + f)) - load(rest + f));
    }
    for (int64_t i = count; i % kRows != 0; ++i) fill(values + i * row, row, 0.0f);
    return count;
  }
};

// ---------------------------------------------------------------------------------------------
// Forward
// ---------------------------------------------------------------------------------------------

struct ForwardWorkspace : Pieces {
  Convolution convolution;
  float* kernel;    // [filters, units]: at a position
  float* product;   // [kBlock, units]: what it gives some observations
  float* sums;      // [observations, units]: what all positions give, beyond `rest`
  float* rest;      // [units]: what an image without any one gives
  Touches touches;

  ForwardWorkspace(const Layers& l, int64_t observations, float* memory)
      : Pieces{memory}, convolution(l, *this) {
    const int64_t row = padded(l.units);
    kernel = take(l.filters * row);
    product = take(kBlock * row);
    sums = take(observations * row);
    rest = take(row);
    touches = {take<Touch>(4 * l.ones * observations), take<int32_t>(l.positions)};
  }
};

int64_t forward_workspace(const Layers& l, int64_t observations) {
  return ForwardWorkspace(l, observations, nullptr).floats;
}

void forward(const Layers& l, const Agent& agent, int64_t begin, int64_t end, float* workspace,
             float* out) {
  const ForwardWorkspace w(l, end - begin, workspace);
  const Convolution& convolution = w.convolution;
  const int64_t row = padded(l.units);
  convolution.read(l, agent);
  list(l, agent, begin, end, w.touches);
  fill(w.sums, (end - begin) * row, 0.0f);
  fill(w.rest, row, 0.0f);
  const bool rests = convolution.rests();
  for (int64_t p = 0; p < l.positions; ++p) {
    Run run(w.touches, p);
    if (!rests && run.is_empty()) continue;
    pad_rows(agent.kernel + p * l.filters * l.units, l.filters, l.units, w.kernel);
    if (rests)
      for (int64_t f = 0; f < l.filters; ++f)
        add_row(w.rest, convolution.rest[f], w.kernel + f * row, row);
    while (!run.is_empty()) {
      const int64_t count = convolution.take(run);
      fill(w.product, (count + kRows - 1) / kRows * kRows * row, 0.0f);
      multiply_add(count, l.units, l.filters, {convolution.values, convolution.row, 1}, w.kernel,
                   w.product);
      for (int64_t i = 0; i < count; ++i)
        add_row(w.sums + (convolution.observations[i] - begin) * row, 1.0f, w.product + i * row,
                row);
    }
  }
  for (int64_t i = 0; i < end - begin; ++i) add_row(w.sums + i * row, 1.0f, w.rest, row);
  unpad_rows(w.sums, end - begin, l.units, out + begin * l.units);
}

// ---------------------------------------------------------------------------------------------
// Backward
// ---------------------------------------------------------------------------------------------

struct BackwardWorkspace : Pieces {
  Convolution convolution;
  float* total;       // [units]: the cotangents of all observations
  float* kernel;      // [filters, units]: at a position
  float* transposed;  // [units, filters]
  float* product;     // [filters, units]: the gradient of the kernel at a position
  float* sums;        // [taps + 1, filters]: the gradients of the convolution, the bias last
  float* cotangents;  // [kBlock, units]: of some observations that touch a position
  float* back;        // [kBlock, filters]: of their features there

  BackwardWorkspace(const Layers& l, float* memory) : Pieces{memory}, convolution(l, *this) {
    const int64_t units = padded(l.units), filters = padded(l.filters);
    total = take(units);
    kernel = take(filters * units);
    transposed = take(units * filters);
    product = take(filters * units);
    sums = take((l.taps + 1) * filters);
    cotangents = take(kBlock * units);
    back = take(kBlock * filters);
  }
};

int64_t backward_workspace(const Layers& l) { return BackwardWorkspace(l, nullptr).floats; }

// What the cotangents of the first `count` observations of a run add to the gradients of the
// convolution.
void scatter(const Layers& l, int64_t count, Run run, const BackwardWorkspace& w) {
  const int64_t row = padded(l.filters);
  float* const bias_sum = w.sums + l.taps * row;
  for (int64_t i = 0; i < count; ++i) {
    const float* const before = w.convolution.before + i * row;
    float* const back = w.back + i * row;
    for (int64_t f = 0; f < row; f += kLanes) {
      const Vec all = load(back + f);
      const Vec through = load(before + f) > 0.0f ? all : Vec{};
      const Vec at_rest = load(w.convolution.bias + f) > 0.0f ? all : Vec{};
      store(back + f, through);
      store(bias_sum + f, load(bias_sum + f) + (through - at_rest));
    }
    for (; run.is_of(w.convolution.observations[i]); run.pop())
      add_row(w.sums + run.front().tap * row, 1.0f, back, row);
  }
}

// What the bias would get if no observation touched a position.
void add_rest(const Layers& l, const BackwardWorkspace& w) {
  const int64_t row = padded(l.filters);
  float* const bias_sum = w.sums + l.taps * row;
  for (int64_t f = 0; f < row; f += kLanes) {
    Vec back = {};
    for (int64_t unit = 0; unit < l.units; ++unit)
      back += w.total[unit] * load(w.transposed + unit * row + f);
    store(bias_sum + f, load(bias_sum + f) + (load(w.convolution.bias + f) > 0.0f ? back : Vec{}));
  }
}

// One position: the gradient of its kernel into `product`, and what it adds to `sums`.
void backward_position(const Layers& l, const float* cotangent, Run run, bool rests,
                       const BackwardWorkspace& w) {
  const int64_t filters = padded(l.filters), units = padded(l.units);
  const Convolution& convolution = w.convolution;
  fill(w.product, filters * units, 0.0f);
  for (int64_t f = 0; f < l.filters; ++f)
    add_row(w.product + f * units, convolution.rest[f], w.total, units);
  while (!run.is_empty()) {
    const Run taken = run;
    const int64_t count = convolution.take(run);
    const int64_t rows = (count + kRows - 1) / kRows * kRows;
    for (int64_t i = 0; i < count; ++i)
      pad_rows(cotangent + convolution.observations[i] * l.units, 1, l.units,
               w.cotangents + i * units);
    fill(w.cotangents + count * units, (rows - count) * units, 0.0f);
    multiply_add(filters, l.units, count, {convolution.values, 1, filters}, w.cotangents,
                 w.product);
    fill(w.back, rows * filters, 0.0f);
    multiply_add(rows, l.filters, l.units, {w.cotangents, units, 1}, w.transposed, w.back);
    scatter(l, count, taken, w);
  }
  if (rests) add_rest(l, w);
}

void backward(const Layers& l, const Agent& agent, const Touches& touches, const float* cotangent,
              int64_t begin, int64_t end, float* workspace, float* d_kernel, float* d_conv) {
  const BackwardWorkspace w(l, workspace);
  const int64_t filters = padded(l.filters), units = padded(l.units), size = l.filters * l.units;
  w.convolution.read(l, agent);
  const bool rests = w.convolution.rests();
  fill(w.total, units, 0.0f);
  for (int64_t i = 0; i < l.batch; ++i)
    for (int64_t unit = 0; unit < l.units; ++unit) w.total[unit] += cotangent[i * l.units + unit];
  fill(w.kernel, filters * units, 0.0f);
  fill(w.sums, (l.taps + 1) * filters, 0.0f);
  for (int64_t p = begin; p < end; ++p) {
    const Run run(touches, p);
    if (rests || !run.is_empty()) {
      pad_rows(agent.kernel + p * size, l.filters, l.units, w.kernel);
      transpose(w.kernel, filters, units, w.transposed);
    }
    backward_position(l, cotangent, run, rests, w);
    unpad_rows(w.product, l.filters, l.units, d_kernel + p * size);
  }
  unpad_rows(w.sums, l.taps + 1, l.filters, d_conv);
}

}  // namespace

extern const Arithmetic ARITHMETIC;
const Arithmetic ARITHMETIC = {NAME_OF(ARITHMETIC), forward_workspace,  forward,
                               list,                backward_workspace, backward};

}  // namespace optim4rl
