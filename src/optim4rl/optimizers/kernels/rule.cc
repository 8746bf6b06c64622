// A step of a learned rule, and the vector-Jacobian product of K of them, for one instruction set.
//
// Blocks of coordinates run through the whole rule while they lie in cache. Within a block an array
// is [rows][kBlock]: coordinates lie along the vector lanes, weights are broadcast. A product of a
// small matrix with such an array keeps a tile of rows x kTile vectors in registers.
//
// The build compiles this file several times, each with another -march and ARITHMETIC.

#include "rule.h"

#include "simd.h"

#ifndef ARITHMETIC
#error "ARITHMETIC: the name of the table that this compilation defines, e.g. avx2"
#endif
#define TO_STRING(x) #x
#define NAME_OF(x) TO_STRING(x)

namespace optim4rl {
namespace {

constexpr int kBlock = 64;      // coordinates that run through the rule together
constexpr int kFlush = 64;      // blocks whose weight gradients are summed in float32
constexpr int kStride = kTile * kLanes;
constexpr int kRows = 4;  // of a register tile
constexpr float kLog2E = 1.442695041f;
constexpr float kLogDomainLimit = 40.0f;  // processing.LOG_DOMAIN_LIMIT
constexpr float kSquareLimit = 1e15f;     // processing.SQUARE_LIMIT
constexpr float kFactorLimit = 10.0f;     // structures.FACTOR_LIMIT
constexpr float kRatioLimit = 5.0f;

static_assert(kBlock % kStride == 0, "a block is a whole number of register tiles");

// ---------------------------------------------------------------------------------------------
// Matrix products on blocks
// ---------------------------------------------------------------------------------------------

// y = start + kernel x for R rows; `start(row, at)` and `finish(row, at, y)` see one vector each.
template <int R, class Start, class Finish>
FORCE_INLINE void multiply_rows(int row, int columns, const float* kernel, int64_t row_stride,
                                int64_t column_stride, const float* x, Start start, Finish finish) {
  for (int at = 0; at < kBlock; at += kStride) {
    Vec y[R][kTile];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int t = 0; t < kTile; ++t) y[r][t] = start(row + r, at + t * kLanes);
    for (int column = 0; column < columns; ++column) {
      const float* weight = kernel + row * row_stride + column * column_stride;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int t = 0; t < kTile; ++t)
          y[r][t] += weight[r * row_stride] * load(x + column * kBlock + at + t * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int t = 0; t < kTile; ++t) finish(row + r, at + t * kLanes, y[r][t]);
  }
}

template <class Start, class Finish>
FORCE_INLINE void multiply(int rows, int columns, const float* kernel, int64_t row_stride,
                           int64_t column_stride, const float* x, Start start, Finish finish) {
  int row = 0;
  for (; row + kRows <= rows; row += kRows)
    multiply_rows<kRows>(row, columns, kernel, row_stride, column_stride, x, start, finish);
  for (; row < rows; ++row)
    multiply_rows<1>(row, columns, kernel, row_stride, column_stride, x, start, finish);
}

// sums[r][c] += sum over steps and coordinates of d[r] * x[c], lane by lane, and with Bias also
// bias_sums[r] += that of d[r]. The rows of one step lie `step_stride` floats after those of the one
// before.
template <int R, int C, bool Bias>
FORCE_INLINE void add_outer_tile(const float* d, const float* x, int steps, int64_t step_stride,
                                 float* sums, int64_t row_stride, float* bias_sums) {
  Vec total[R][C], bias_total[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if (Bias) bias_total[r] = load(bias_sums + r * kLanes);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) total[r][c] = load(sums + (r * row_stride + c) * kLanes);
  }
  for (int step = 0; step < steps; ++step, d += step_stride, x += step_stride) {
#pragma GCC unroll 2
    for (int at = 0; at < kBlock; at += kLanes) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec row = load(d + r * kBlock + at);
        if (Bias) bias_total[r] += row;
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) total[r][c] += row * load(x + c * kBlock + at);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if (Bias) store(bias_sums + r * kLanes, bias_total[r]);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(sums + (r * row_stride + c) * kLanes, total[r][c]);
  }
}

template <int R, int C>
FORCE_INLINE void add_outer_columns(int column, const float* d, const float* x, int steps,
                                    int64_t step_stride, float* sums, int row_stride,
                                    float* bias_sums) {
  x += column * kBlock;
  sums += column * kLanes;
  if (bias_sums != nullptr && column == 0) {
    add_outer_tile<R, C, true>(d, x, steps, step_stride, sums, row_stride, bias_sums);
  } else {
    add_outer_tile<R, C, false>(d, x, steps, step_stride, sums, row_stride, nullptr);
  }
}

template <int R>
FORCE_INLINE void add_outer_rows(int columns, const float* d, const float* x, int steps,
                                 int64_t step_stride, float* sums, int row_stride,
                                 float* bias_sums) {
  int c = 0;
  for (; c + kTile <= columns; c += kTile)
    add_outer_columns<R, kTile>(c, d, x, steps, step_stride, sums, row_stride, bias_sums);
  if (c + 2 <= columns) {
    add_outer_columns<R, 2>(c, d, x, steps, step_stride, sums, row_stride, bias_sums);
    c += 2;
  }
  if (c < columns)
    add_outer_columns<R, 1>(c, d, x, steps, step_stride, sums, row_stride, bias_sums);
}

// A row of `sums` has `row_stride` entries, of which the first `columns` are added to. A null
// `bias_sums` leaves them out.
void add_outer(int rows, int columns, const float* d, const float* x, int steps,
               int64_t step_stride, float* sums, int row_stride, float* bias_sums) {
  int row = 0;
  const auto advance = [&](int count) {
    row += count;
    d += count * kBlock;
    sums += count * row_stride * kLanes;
    if (bias_sums != nullptr) bias_sums += count * kLanes;
  };
  for (; row + kRows <= rows; advance(kRows))
    add_outer_rows<kRows>(columns, d, x, steps, step_stride, sums, row_stride, bias_sums);
  for (; row < rows; advance(1))
    add_outer_rows<1>(columns, d, x, steps, step_stride, sums, row_stride, bias_sums);
}

// ---------------------------------------------------------------------------------------------
// The workspace
// ---------------------------------------------------------------------------------------------

// Where the arrays of one network at one step lie, in floats from the start of that step.
struct Tape {
  int64_t features;             // [inputs]
  int64_t hidden;               // [hidden], after the step
  int64_t gates;                // [4 hidden]: reset, update, recall, new; then their gradients
  int64_t outputs[kMaxLayers];  // [outputs] of each layer; of the last, then its gradient
  int64_t deltas[kMaxLayers];   // gradients of the hidden layers' outputs
};

// Tape 0 holds the state before the first step, tape k + 1 what step k computes.
struct Workspace {
  Tape tapes[kMaxNetworks];
  int64_t tape_floats;
  float* steps;
  float* gradient;                // [1], clipped
  float* ratios;                  // [3], anchored and mirrored
  float* moments;                 // [num_moments]
  float* d_hidden;                // [hidden]
  float* packed[kMaxNetworks];    // weights of the cell, or without one the head's first biases
  float* sums;                    // [num_weights][kLanes]
  double* totals;                 // [num_weights]
  int64_t floats;
};

bool has_cell(const Rule& rule) { return rule.hidden > 0; }

int64_t packed_floats(const Rule& rule, const Network& network) {
  if (!has_cell(rule)) return network.layers[0].outputs;
  return rule.hidden * (4 + 3 * (network.features + rule.hidden));
}

// Lays the arrays out from `start` on; with a null `start` it only measures.
Workspace lay_out(const Rule& rule, int steps, bool replay, float* start) {
  Workspace w = {};
  auto rows = [](int64_t& floats, int count) {
    const int64_t offset = floats;
    floats += int64_t{count} * kBlock;
    return offset;
  };
  for (int i = 0; i < rule.num_networks; ++i) {
    const Network& network = rule.networks[i];
    Tape& tape = w.tapes[i];
    tape.features = rows(w.tape_floats, network.features);
    tape.hidden = rows(w.tape_floats, rule.hidden);
    if (replay) tape.gates = rows(w.tape_floats, 4 * rule.hidden);
    for (int l = 0; l < rule.num_layers; ++l) {
      tape.outputs[l] = rows(w.tape_floats, network.layers[l].outputs);
      tape.deltas[l] = tape.outputs[l];
      if (replay && l + 1 < rule.num_layers)
        tape.deltas[l] = rows(w.tape_floats, network.layers[l].outputs);
    }
  }
  auto take = [&w, start](int64_t floats) {
    float* p = start + w.floats;
    w.floats += (floats + 15) / 16 * 16;
    return p;
  };
  w.steps = take((steps + 1) * w.tape_floats);
  w.gradient = take(kBlock);
  w.ratios = take(3 * kBlock);
  w.moments = take(rule.num_moments * kBlock);
  for (int i = 0; i < rule.num_networks; ++i)
    w.packed[i] = take(packed_floats(rule, rule.networks[i]));
  if (replay) {
    w.d_hidden = take(rule.hidden * kBlock);
    w.sums = take(rule.num_weights * kLanes);
    w.totals = reinterpret_cast<double*>(take(2 * rule.num_weights));
  }
  return w;
}

// Reads `count` coordinates of each row of [rows, n] into a block and fills it up with the last one,
// whose arithmetic is as good as any.
void read_rows(float* block, const float* rows, int num_rows, int64_t n, int count) {
  for (int r = 0; r < num_rows; ++r, block += kBlock, rows += n) {
    if (count == kBlock) {
      __builtin_memcpy(block, rows, kBlock * sizeof(float));
    } else {
      for (int c = 0; c < kBlock; ++c) block[c] = rows[c < count ? c : count - 1];
    }
  }
}

void write_rows(float* rows, const float* block, int num_rows, int64_t n, int count) {
  for (int r = 0; r < num_rows; ++r, block += kBlock, rows += n) {
    // A copy of known length is a few vector moves.
    if (count == kBlock) {
      __builtin_memcpy(rows, block, kBlock * sizeof(float));
    } else {
      __builtin_memcpy(rows, block, count * sizeof(float));
    }
  }
}

// Whether `count` coordinates of each row of [rows, n] are exactly zero.
bool are_zero(const float* rows, int num_rows, int64_t n, int count) {
  for (int r = 0; r < num_rows; ++r, rows += n) {
    bool zero = true;
    for (int c = 0; c < count; ++c) zero &= rows[c] == 0.0f;
    if (!zero) return false;
  }
  return true;
}

// ---------------------------------------------------------------------------------------------
// The gated recurrent unit
// ---------------------------------------------------------------------------------------------

// The weights of each unit in the order in which `gru_forward` reads them: 4 biases, then (reset,
// update, new) for each input, then (reset, update, recall) for each hidden unit. They are scaled
// so that the exponentials of the gates are powers of two: sigmoid(x) = 1 / (1 + 2^(-x log2 e))
// and tanh(x) = (2^(2 x log2 e) - 1) / (2^(2 x log2 e) + 1). The inputs that are constants of a
// segment, `constants`, are added to its biases.
void pack_gates(const Rule& rule, const Network& network, const float* weights,
                const float* constants, float* packed) {
  const int H = rule.hidden, I = network.inputs;
  const float scale[3] = {-kLog2E, -kLog2E, 2.0f * kLog2E};
  for (int unit = 0; unit < H; ++unit) {
    for (int gate = 0; gate < 3; ++gate) {
      float bias = weights[network.bias + gate * H + unit];
      const float* row = weights + network.input + (gate * H + unit) * I + network.features;
      for (int i = 0; i < rule.num_segment_inputs; ++i) bias += row[i] * constants[i];
      *packed++ = scale[gate] * bias;
    }
    *packed++ = scale[2] * weights[network.bias_new + unit];
    for (int i = 0; i < network.features; ++i)
      for (int gate = 0; gate < 3; ++gate)
        *packed++ = scale[gate] * weights[network.input + (gate * H + unit) * I + i];
    for (int j = 0; j < H; ++j)
      for (int gate = 0; gate < 3; ++gate)
        *packed++ = scale[gate] * weights[network.hidden_kernel + (gate * H + unit) * H + j];
  }
}

// Without a cell: the biases of the head's first layer with what the constants of a segment add.
void pack_biases(const Rule& rule, const Network& network, const float* weights,
                 const float* constants, float* packed) {
  const Layer& layer = network.layers[0];
  for (int row = 0; row < layer.outputs; ++row) {
    packed[row] = weights[layer.bias + row];
    const float* kernel = weights + layer.kernel + row * layer.inputs + network.features;
    for (int i = 0; i < rule.num_segment_inputs; ++i) packed[row] += kernel[i] * constants[i];
  }
}

// 1 / (1 + 2^a) and 1 / (1 + 2^b), in place.
FORCE_INLINE void sigmoid_pair(Vec (&a)[kTile], Vec (&b)[kTile]) {
  // One division serves both; 2^60 twice does not overflow.
  Vec x[2 * kTile], scale[2 * kTile], tail[2 * kTile];
  for (int t = 0; t < kTile; ++t) {
    x[t] = clamp(a[t], -60.0f, 60.0f);
    x[kTile + t] = clamp(b[t], -60.0f, 60.0f);
  }
  power_of_two(x, scale, tail);
  for (int i = 0; i < 2 * kTile; ++i) tail[i] += 1.0f;
  for (int i = 0; i < 2 * kTile; ++i) x[i] = scale[i] * tail[i] + 1.0f;
  for (int t = 0; t < kTile; ++t) {
    const Vec inverse = 1.0f / (x[t] * x[kTile + t]);
    a[t] = inverse * x[kTile + t];
    b[t] = inverse * x[t];
  }
}

// (2^x - 1) / (2^x + 1), in place.
FORCE_INLINE void hyperbolic_tangent(Vec (&x)[kTile]) {
  Vec scale[kTile], tail[kTile];
  for (int t = 0; t < kTile; ++t) x[t] = clamp(x[t], -30.0f, 30.0f);
  power_of_two(x, scale, tail);
  for (int t = 0; t < kTile; ++t) {
    x[t] = scale[t] * tail[t] + (scale[t] - 1.0f);
    x[t] /= scale[t] * tail[t] + (scale[t] + 1.0f);
  }
}

// The new hidden state. With Keep it also writes reset, update, recall (the recurrent part of the
// candidate, before the reset gate) and new (the candidate) for the way back.
template <bool Keep>
void gru_forward(int H, int I, const float* packed, const float* x, const float* h, float* new_h,
                 float* gates) {
  const int unit_floats = 4 + 3 * (I + H);
  for (int unit = 0; unit < H; ++unit, packed += unit_floats) {
    for (int at = 0; at < kBlock; at += kStride) {
      Vec reset[kTile], update[kTile], candidate[kTile], recall[kTile];
#pragma GCC unroll 8
      for (int t = 0; t < kTile; ++t) {
        reset[t] = splat(packed[0]);
        update[t] = splat(packed[1]);
        candidate[t] = splat(packed[2]);
        recall[t] = splat(packed[3]);
      }
      const float* weight = packed + 4;
      for (int i = 0; i < I; ++i, weight += 3) {
#pragma GCC unroll 8
        for (int t = 0; t < kTile; ++t) {
          const Vec v = load(x + i * kBlock + at + t * kLanes);
          reset[t] += weight[0] * v;
          update[t] += weight[1] * v;
          candidate[t] += weight[2] * v;
        }
      }
      for (int j = 0; j < H; ++j, weight += 3) {
#pragma GCC unroll 8
        for (int t = 0; t < kTile; ++t) {
          const Vec v = load(h + j * kBlock + at + t * kLanes);
          reset[t] += weight[0] * v;
          update[t] += weight[1] * v;
          recall[t] += weight[2] * v;
        }
      }
      sigmoid_pair(reset, update);
#pragma GCC unroll 8
      for (int t = 0; t < kTile; ++t) candidate[t] += reset[t] * recall[t];
      hyperbolic_tangent(candidate);
#pragma GCC unroll 8
      for (int t = 0; t < kTile; ++t) {
        const int here = unit * kBlock + at + t * kLanes;
        store(new_h + here, candidate[t] + update[t] * (load(h + here) - candidate[t]));
        if (Keep) {
          store(gates + here, reset[t]);
          store(gates + H * kBlock + here, update[t]);
          store(gates + 2 * H * kBlock + here, recall[t] * (0.5f / kLog2E));
          store(gates + 3 * H * kBlock + here, candidate[t]);
        }
      }
    }
  }
}

// Turns the gates into their gradients, in place, and d_h from the gradient of the new hidden state
// into that of the old one (left undone with `last`: nothing before reads it).
void gru_backward(int H, const float* hidden_kernel, const float* h, float* gates, float* d_h,
                  bool last) {
  for (int at = 0; at < H * kBlock; at += kLanes) {
    float* gate[4];
    for (int g = 0; g < 4; ++g) gate[g] = gates + g * H * kBlock + at;
    const Vec d = load(d_h + at), r = load(gate[0]), z = load(gate[1]), recall = load(gate[2]),
              n = load(gate[3]);
    const Vec d_z = d * z;
    const Vec d_n = (d - d_z) * (1.0f - n * n);
    const Vec d_recall = d_n * r;
    store(gate[0], (d_recall - d_recall * r) * recall);
    store(gate[1], (d_z - d_z * z) * (load(h + at) - n));
    store(gate[2], d_recall);
    store(gate[3], d_n);
    store(d_h + at, d_z);
  }
  if (last) return;
  multiply(
      H, 3 * H, hidden_kernel, 1, H, gates,
      [=](int row, int at) { return load(d_h + row * kBlock + at); },
      [=](int row, int at, Vec y) { store(d_h + row * kBlock + at, y); });
}

// ---------------------------------------------------------------------------------------------
// The head
// ---------------------------------------------------------------------------------------------

// Of the layer's inputs, `x` holds the first `columns`; the bias counts the others.
void affine(const Layer& layer, int columns, const float* kernel, const float* bias,
            const float* x, float* y, bool rectified) {
  const auto start = [=](int row, int) { return splat(bias[row]); };
  if (rectified) {
    multiply(layer.outputs, columns, kernel, layer.inputs, 1, x, start,
             [=](int row, int at, Vec v) { store(y + row * kBlock + at, relu(v)); });
  } else {
    multiply(layer.outputs, columns, kernel, layer.inputs, 1, x, start,
             [=](int row, int at, Vec v) { store(y + row * kBlock + at, v); });
  }
}

// Where the head reads: the new hidden state, or without a cell the features.
int64_t head_inputs(const Rule& rule, const Tape& tape) {
  return has_cell(rule) ? tape.hidden : tape.features;
}

void head_forward(const Rule& rule, const Network& network, const Tape& tape, const float* weights,
                  const float* packed, float* step) {
  const float* x = step + head_inputs(rule, tape);
  for (int l = 0; l < rule.num_layers; ++l) {
    const Layer& layer = network.layers[l];
    const bool of_features = l == 0 && !has_cell(rule);
    float* y = step + tape.outputs[l];
    affine(layer, of_features ? network.features : layer.inputs, weights + layer.kernel,
           of_features ? packed : weights + layer.bias, x, y, l + 1 < rule.num_layers);
    x = y;
  }
}

// From the gradient of the last layer's outputs to those of all layers; adds to d_hidden.
void head_backward(const Rule& rule, const Network& network, const Tape& tape, const float* weights,
                   float* step, float* d_hidden) {
  for (int l = rule.num_layers - 1; l >= 0; --l) {
    const Layer& layer = network.layers[l];
    const float* kernel = weights + layer.kernel;
    const float* delta = step + tape.deltas[l];
    if (l == 0) {
      if (!has_cell(rule)) continue;
      multiply(
          layer.inputs, layer.outputs, kernel, 1, layer.inputs, delta,
          [=](int row, int at) { return load(d_hidden + row * kBlock + at); },
          [=](int row, int at, Vec y) { store(d_hidden + row * kBlock + at, y); });
    } else {
      const float* activations = step + tape.outputs[l - 1];
      float* previous = step + tape.deltas[l - 1];
      multiply(
          layer.inputs, layer.outputs, kernel, 1, layer.inputs, delta,
          [](int, int) { return Vec{}; },
          [=](int row, int at, Vec y) {
            const Vec active = load(activations + row * kBlock + at);
            store(previous + row * kBlock + at, active > 0.0f ? y : Vec{});
          });
    }
  }
}

void add_gate_gradients(const Rule& rule, const Network& network, const Tape& tape, int steps,
                        const Workspace& w) {
  const int H = rule.hidden, F = network.features, I = network.inputs;
  const int64_t stride = w.tape_floats;
  const float* first = w.steps + stride;
  const auto sums = [&w](int64_t weight) { return w.sums + weight * kLanes; };
  const float* gates = first + tape.gates;
  const float* x = first + tape.features;
  const float* h = w.steps + tape.hidden;
  const float* recall = gates + 2 * H * kBlock;
  const float* candidate = gates + 3 * H * kBlock;
  add_outer(2 * H, F, gates, x, steps, stride, sums(network.input), I, sums(network.bias));
  add_outer(H, F, candidate, x, steps, stride, sums(network.input + 2 * H * I), I,
            sums(network.bias + 2 * H));
  add_outer(2 * H, H, gates, h, steps, stride, sums(network.hidden_kernel), H, nullptr);
  add_outer(H, H, recall, h, steps, stride, sums(network.hidden_kernel + 2 * H * H), H,
            sums(network.bias_new));
}

void add_weight_gradients(const Rule& rule, const Network& network, const Tape& tape, int steps,
                          const Workspace& w) {
  const int64_t stride = w.tape_floats;
  const float* first = w.steps + stride;
  const auto sums = [&w](int64_t weight) { return w.sums + weight * kLanes; };
  if (has_cell(rule)) add_gate_gradients(rule, network, tape, steps, w);
  const float* inputs = first + head_inputs(rule, tape);
  for (int l = 0; l < rule.num_layers; ++l) {
    const Layer& layer = network.layers[l];
    const int columns = l == 0 && !has_cell(rule) ? network.features : layer.inputs;
    add_outer(layer.outputs, columns, first + tape.deltas[l], inputs, steps, stride,
              sums(layer.kernel), layer.inputs, sums(layer.bias));
    inputs = first + tape.outputs[l];
  }
}

// ---------------------------------------------------------------------------------------------
// Processing and structure
// ---------------------------------------------------------------------------------------------

FORCE_INLINE Vec bounded_square(Vec g) {
  g = clamp(g, -kSquareLimit, kSquareLimit);
  return g * g;
}

FORCE_INLINE Vec scaled_log(const Rule& rule, Vec g) {
  return (logarithm(absolute(g) + rule.log_epsilon) + rule.log_shift) * rule.log_scale;
}

// Writes what the network of the first moment reads of a gradient; says how many rows that is.
FORCE_INLINE int first_features(const Rule& rule, Vec g, float* x) {
  if (rule.processing == Processing::kRawAndSquare) {
    store(x, g);
    return 1;
  }
  store(x, sign(g));
  store(x + kBlock, scaled_log(rule, g));
  return 2;
}

FORCE_INLINE Vec second_feature(const Rule& rule, Vec g, const float* first) {
  return rule.processing == Processing::kRawAndSquare ? bounded_square(g)
                                                      : 2.0f * load(first + kBlock);
}

// Half of the second feature, by itself.
FORCE_INLINE Vec even_feature(const Rule& rule, Vec g) {
  return rule.processing == Processing::kRawAndSquare ? 0.5f * bounded_square(g)
                                                      : scaled_log(rule, g);
}

void adaptive_features(const Rule& rule, const Workspace& w, float* step) {
  for (int at = 0; at < kBlock; at += kLanes) {
    const Vec g = load(w.gradient + at);
    float* first = step + w.tapes[0].features + at;
    first_features(rule, g, first);
    store(step + w.tapes[1].features + at, second_feature(rule, g, first));
  }
}

// Moves the moments on, and writes the ratios to the square root of the second: Adam's, the fresh
// gradient's and the slow momentum's.
void anchored_ratios(const Rule& rule, const Clock& clock, const Workspace& w) {
  for (int at = 0; at < kBlock; at += kLanes) {
    const Vec g = load(w.gradient + at);
    float* moments[3] = {w.moments + at, w.moments + kBlock + at, w.moments + 2 * kBlock + at};
    const Vec m = rule.beta1 * load(moments[0]) + (1.0f - rule.beta1) * g;
    const Vec v = rule.beta2 * load(moments[1]) + (1.0f - rule.beta2) * bounded_square(g);
    const Vec slow = rule.beta_slow * load(moments[2]) + (1.0f - rule.beta_slow) * g;
    store(moments[0], m);
    store(moments[1], v);
    store(moments[2], slow);
    const Vec scale = 1.0f / (square_root(v / clock.correction2) + rule.epsilon);
    store(w.ratios + at, m / clock.correction1 * scale);
    store(w.ratios + kBlock + at, g * scale);
    store(w.ratios + 2 * kBlock + at, slow / clock.correction_slow * scale);
  }
}

FORCE_INLINE Vec bounded_ratio(const Workspace& w, int ratio, int at) {
  return clamp(load(w.ratios + ratio * kBlock + at), -kRatioLimit, kRatioLimit);
}

void anchored_features(const Rule& rule, const Clock& clock, const Workspace& w, float* step) {
  for (int at = 0; at < kBlock; at += kLanes) {
    float* x = step + w.tapes[0].features + at;
    x += first_features(rule, load(w.gradient + at), x) * kBlock;
    store(x, splat(clock.log_age));
    for (int i = 0; i < 3; ++i) store(x + (i + 1) * kBlock, bounded_ratio(w, i, at));
  }
}

// Nothing that tells a gradient from its negative: sizes, and products of two ratios.
void mirrored_features(const Rule& rule, const Clock& clock, const Workspace& w, float* step) {
  for (int at = 0; at < kBlock; at += kLanes) {
    float* x = step + w.tapes[0].features + at;
    store(x, even_feature(rule, load(w.gradient + at)));
    store(x + kBlock, splat(clock.log_age));
    const Vec adam = bounded_ratio(w, 0, at);
    for (int i = 0; i < 3; ++i) store(x + (i + 2) * kBlock, absolute(bounded_ratio(w, i, at)));
    for (int i = 1; i < 3; ++i) store(x + (i + 4) * kBlock, 0.2f * adam * bounded_ratio(w, i, at));
  }
}

// `slope` where x lies inside (-limit, limit), else 0: the way back through a bounded exponential.
FORCE_INLINE Vec inside(Vec x, float limit, Vec slope) {
  return absolute(x) < limit ? slope : Vec{};
}

// The derivative of tanh.
FORCE_INLINE Vec tanh_slope(Vec x) {
  const Vec y[1] = {clamp(x * (2.0f * kLog2E), -60.0f, 60.0f)};
  Vec scale[1], tail[1];
  power_of_two(y, scale, tail);
  const Vec p = scale[0] * (tail[0] + 1.0f);
  return 4.0f * p / ((p + 1.0f) * (p + 1.0f));
}

// Writes the direction, or with Replay the gradient of each output, given that of the direction.
template <bool Replay>
void adaptive_direction(const Rule& rule, const Workspace& w, float* step, const float* cotangent,
                        float* direction) {
  const int last = rule.num_layers - 1;
  for (int at = 0; at < kBlock; at += kLanes) {
    float* first = step + w.tapes[0].outputs[last] + at;
    float* second = step + w.tapes[1].outputs[last] + at;
    const Vec log_m = load(first + rule.has_sign * kBlock), log_v = load(second);
    const Vec power = exponential(clamp(log_v, -kLogDomainLimit, kLogDomainLimit));
    const Vec v = power + rule.epsilon;
    Vec d = sign(load(w.gradient + at)) *
            exponential(clamp(log_m, -kLogDomainLimit, kLogDomainLimit)) / square_root(v);
    d *= rule.step_scale;
    if (Replay) d *= load(cotangent + at);
    if (rule.has_sign) {
      const Vec x = load(first) + 1.0f;
      // Straight through: the sign's derivative is that of tanh.
      if (Replay) store(first, d * tanh_slope(x));
      const Vec one = splat(1.0f);
      d *= x >= 0.0f ? one : (x < 0.0f ? -one : x);
    }
    if (Replay) {
      store(first + rule.has_sign * kBlock, inside(log_m, kLogDomainLimit, d));
      store(second, inside(log_v, kLogDomainLimit, -0.5f * d * power / v));
    } else {
      store(direction + at, d);
    }
  }
}

template <bool Replay>
void anchored_direction(const Rule& rule, const Workspace& w, float* step, const float* cotangent,
                        float* direction) {
  for (int at = 0; at < kBlock; at += kLanes) {
    float* outputs = step + w.tapes[0].outputs[rule.num_layers - 1] + at;
    const Vec gain = load(outputs);
    Vec scale = splat(rule.step_scale);
    if (Replay) scale *= load(cotangent + at);
    const Vec adam = exponential(clamp(gain, -kFactorLimit, kFactorLimit)) * load(w.ratios + at);
    const Vec fresh = rule.fresh_weight * load(w.ratios + kBlock + at);
    const Vec slow = rule.slow_weight * load(w.ratios + 2 * kBlock + at);
    if (Replay) {
      store(outputs, inside(gain, kFactorLimit, scale * adam));
      store(outputs + kBlock, scale * fresh);
      store(outputs + 2 * kBlock, scale * slow);
    } else {
      const Vec mixed = load(outputs + kBlock) * fresh + load(outputs + 2 * kBlock) * slow;
      store(direction + at, scale * (adam + mixed));
    }
  }
}

// ---------------------------------------------------------------------------------------------
// A block of coordinates through the rule
// ---------------------------------------------------------------------------------------------

// One step: from `gradient` in the workspace and the state in the tape before this one.
template <bool Replay>
void forward(const Rule& rule, const Workspace& w, const float* weights, const Clock& clock,
             float* step, const float* cotangent, float* direction) {
  for (int at = 0; at < kBlock; at += kLanes)
    store(w.gradient + at, clamp(load(w.gradient + at), -rule.clip, rule.clip));
  const bool anchored = rule.structure != Structure::kAdaptive;
  if (anchored) anchored_ratios(rule, clock, w);
  switch (rule.structure) {
    case Structure::kAdaptive: adaptive_features(rule, w, step); break;
    case Structure::kAnchored: anchored_features(rule, clock, w, step); break;
    case Structure::kMirrored: mirrored_features(rule, clock, w, step); break;
  }
  for (int i = 0; i < rule.num_networks; ++i) {
    const Tape& tape = w.tapes[i];
    if (has_cell(rule))
      gru_forward<Replay>(rule.hidden, rule.networks[i].features, w.packed[i],
                          step + tape.features, step - w.tape_floats + tape.hidden,
                          step + tape.hidden, step + tape.gates);
    head_forward(rule, rule.networks[i], tape, weights, w.packed[i], step);
  }
  if (anchored) {
    anchored_direction<Replay>(rule, w, step, cotangent, direction);
  } else {
    adaptive_direction<Replay>(rule, w, step, cotangent, direction);
  }
}

void backward(const Rule& rule, const Workspace& w, const float* weights, int steps) {
  for (int i = 0; i < rule.num_networks; ++i) {
    const Network& network = rule.networks[i];
    const Tape& tape = w.tapes[i];
    for (int at = 0; at < rule.hidden * kBlock; at += kLanes) store(w.d_hidden + at, Vec{});
    for (int k = steps; k > 0; --k) {
      float* step = w.steps + k * w.tape_floats;
      head_backward(rule, network, tape, weights, step, w.d_hidden);
      if (has_cell(rule))
        gru_backward(rule.hidden, weights + network.hidden_kernel,
                     step - w.tape_floats + tape.hidden, step + tape.gates, w.d_hidden, k == 1);
    }
    add_weight_gradients(rule, network, tape, steps, w);
  }
}

void read_state(const Rule& rule, const Agent& agent, int64_t begin, int count,
                const Workspace& w) {
  for (int i = 0; i < rule.num_networks; ++i)
    read_rows(w.steps + w.tapes[i].hidden, agent.hidden[i] + begin, rule.hidden, agent.n, count);
  read_rows(w.moments, agent.moments + begin, rule.num_moments, agent.n, count);
}

void write_state(const Rule& rule, const Agent& agent, int64_t begin, int count,
                 const Workspace& w) {
  const float* step = w.steps + w.tape_floats;
  for (int i = 0; i < rule.num_networks; ++i)
    write_rows(agent.new_hidden[i] + begin, step + w.tapes[i].hidden, rule.hidden, agent.n, count);
  write_rows(agent.new_moments + begin, w.moments, rule.num_moments, agent.n, count);
}

// Moves the float32 sums to the float64 totals. Where an input is a constant of the segment, its
// weights have no sums of their own: they are that constant times those of the bias.
void flush(const Rule& rule, const float* constants, const Workspace& w) {
  for (int i = 0; i < rule.num_networks; ++i) {
    const Network& network = rule.networks[i];
    const Layer& layer = network.layers[0];
    const int rows = has_cell(rule) ? 3 * rule.hidden : layer.outputs;
    const int64_t biases = has_cell(rule) ? network.bias : layer.bias;
    const int64_t kernel = has_cell(rule) ? network.input : layer.kernel;
    for (int row = 0; rule.num_segment_inputs > 0 && row < rows; ++row) {
      const double bias = sum(load(w.sums + (biases + row) * kLanes));
      double* totals = w.totals + kernel + row * network.inputs + network.features;
      for (int c = 0; c < rule.num_segment_inputs; ++c) totals[c] += constants[c] * bias;
    }
  }
  for (int64_t i = 0; i < rule.num_weights; ++i) {
    w.totals[i] += sum(load(w.sums + i * kLanes));
    store(w.sums + i * kLanes, Vec{});
  }
}

// Calls `run(constants, begin, end)` for the part of each segment that lies in [begin, end).
template <class Run>
void for_segments(const Rule& rule, int64_t begin, int64_t end, Run run) {
  const int64_t* stop = rule.segment_ends;
  const float* constants = rule.segment_inputs;
  for (; begin < end; ++stop, constants += rule.num_segment_inputs) {
    if (*stop <= begin) continue;
    const int64_t here = *stop < end ? *stop : end;
    run(constants, begin, here);
    begin = here;
  }
}

void pack(const Rule& rule, const float* weights, const float* constants, const Workspace& w) {
  for (int i = 0; i < rule.num_networks; ++i)
    (has_cell(rule) ? pack_gates : pack_biases)(rule, rule.networks[i], weights, constants,
                                                w.packed[i]);
}

int block_size(int64_t begin, int64_t end) {
  return end - begin < kBlock ? static_cast<int>(end - begin) : kBlock;
}

int64_t step_workspace(const Rule& rule) { return lay_out(rule, 1, false, nullptr).floats; }

int64_t replay_workspace(const Rule& rule, int steps) {
  return lay_out(rule, steps, true, nullptr).floats;
}

void step_segment(const Rule& rule, const Agent& agent, int64_t begin, int64_t end,
                  const Workspace& w) {
  alignas(64) float direction[kBlock];
  for (; begin < end; begin += kBlock) {
    const int count = block_size(begin, end);
    read_rows(w.gradient, agent.gradients + begin, 1, agent.n, count);
    read_state(rule, agent, begin, count, w);
    forward<false>(rule, w, agent.weights, *agent.clocks, w.steps + w.tape_floats, nullptr,
                   direction);
    write_rows(agent.direction + begin, direction, 1, agent.n, count);
    write_state(rule, agent, begin, count, w);
  }
}

void replay_segment(const Rule& rule, const Agent& agent, int64_t begin, int64_t end,
                    const float* constants, const Workspace& w) {
  alignas(64) float cotangent[kBlock];
  for (int blocks = 1; begin < end; begin += kBlock, ++blocks) {
    const int count = block_size(begin, end);
    // An input that an agent never met has no gradient, and often a row of weights to itself.
    if (are_zero(agent.cotangents + begin, agent.steps, agent.n, count)) continue;
    read_state(rule, agent, begin, count, w);
    for (int k = 0; k < agent.steps; ++k) {
      read_rows(w.gradient, agent.gradients + k * agent.n + begin, 1, agent.n, count);
      read_rows(cotangent, agent.cotangents + k * agent.n + begin, 1, agent.n, count);
      // What fills up a block has a zero cotangent: it adds nothing.
      for (int c = count; c < kBlock; ++c) cotangent[c] = 0.0f;
      forward<true>(rule, w, agent.weights, agent.clocks[k], w.steps + (k + 1) * w.tape_floats,
                    cotangent, nullptr);
    }
    backward(rule, w, agent.weights, agent.steps);
    if (blocks % kFlush == 0) flush(rule, constants, w);
  }
  flush(rule, constants, w);
}

void step(const Rule& rule, const Agent& agent, int64_t begin, int64_t end, float* workspace) {
  const Workspace w = lay_out(rule, 1, false, workspace);
  for_segments(rule, begin, end, [&](const float* constants, int64_t from, int64_t to) {
    pack(rule, agent.weights, constants, w);
    step_segment(rule, agent, from, to, w);
  });
}

void replay(const Rule& rule, const Agent& agent, int64_t begin, int64_t end, float* workspace,
            float* weight_gradient) {
  const Workspace w = lay_out(rule, agent.steps, true, workspace);
  for (int64_t i = 0; i < rule.num_weights * kLanes; i += kLanes) store(w.sums + i, Vec{});
  for (int64_t i = 0; i < rule.num_weights; ++i) w.totals[i] = 0.0;
  for_segments(rule, begin, end, [&](const float* constants, int64_t from, int64_t to) {
    pack(rule, agent.weights, constants, w);
    replay_segment(rule, agent, from, to, constants, w);
  });
  for (int64_t i = 0; i < rule.num_weights; ++i)
    weight_gradient[i] = static_cast<float>(w.totals[i]);
}

}  // namespace

extern const Arithmetic ARITHMETIC;
const Arithmetic ARITHMETIC = {NAME_OF(ARITHMETIC), step_workspace, replay_workspace, step, replay};

}  // namespace optim4rl
