// What the driver (ffi.cc) and the arithmetic (rule.cc, compiled once per instruction set) share.
//
// Only plain structs live here: an inline function of a header would be compiled for several
// instruction sets, and the linker could keep the one that this machine cannot run.

#pragma once

#include <cstdint>

namespace optim4rl {

constexpr int kMaxNetworks = 2;
constexpr int kMaxLayers = 8;

enum class Processing : int32_t { kSignLog = 0, kRawAndSquare = 1 };
enum class Structure : int32_t { kAdaptive = 0, kAnchored = 1, kMirrored = 2 };

// A dense layer; `kernel` [outputs, inputs] and `bias` [outputs] are offsets into the weights.
struct Layer {
  int inputs, outputs;
  int64_t kernel, bias;
};

// A GRU and its head; where there are no hidden units, a head that reads the inputs. Gates come in
// the order reset, update, new: `input` [3 hidden, inputs], `bias` [3 hidden], `hidden_kernel`
// [3 hidden, hidden] and `bias_new` [hidden] are offsets. The first `features` inputs are computed
// of the gradient, the others are constants of a segment.
struct Network {
  int inputs, features;
  int64_t input, bias, hidden_kernel, bias_new;
  Layer layers[kMaxLayers];
};

// A rule without its weights: optim4rl.optimizers.rule.OptimizerSpec.
struct Rule {
  Processing processing;
  Structure structure;
  bool has_sign;  // Adaptive.signed
  int hidden, num_networks, num_layers, num_moments;
  int64_t num_weights;
  Network networks[kMaxNetworks];
  float clip, step_scale;
  float log_epsilon, log_shift, log_scale;        // SignLog
  float epsilon;                                  // of the structure
  float beta1, beta2, beta_slow;                  // Anchored, Mirrored
  float fresh_weight, slow_weight;
  // Runs of coordinates: segment i ends at segment_ends[i], and what all networks read of its
  // coordinates is segment_inputs[i], [num_segment_inputs].
  int num_segment_inputs;
  const int64_t* segment_ends;
  const float* segment_inputs;
};

// What depends on the age alone, for one step of an anchored rule.
struct Clock {
  float correction1, correction2, correction_slow, log_age;
};

// One agent. Arrays are [rows, n] with coordinates contiguous. A step may write its new state over
// the old one. A replay has `steps` gradients and cotangents [steps, n] and clocks [steps], and
// writes no state.
struct Agent {
  int64_t n;
  int steps;
  const float* weights;
  const Clock* clocks;
  const float* gradients;
  const float* cotangents;
  const float* hidden[kMaxNetworks];
  const float* moments;
  float* direction;
  float* new_hidden[kMaxNetworks];
  float* new_moments;
};

// The arithmetic for one instruction set. Both work on coordinates [begin, end) of one agent;
// `workspace` is aligned to 64 bytes and holds as many floats as the function of that name says.
struct Arithmetic {
  const char* name;
  int64_t (*step_workspace)(const Rule&);
  int64_t (*replay_workspace)(const Rule&, int steps);
  void (*step)(const Rule&, const Agent&, int64_t begin, int64_t end, float* workspace);
  // Writes d sum(cotangents * directions) / d weights, [num_weights].
  void (*replay)(const Rule&, const Agent&, int64_t begin, int64_t end, float* workspace,
                 float* weight_gradient);
};

}  // namespace optim4rl
