// What the two drivers share: ffi.cc, which XLA calls, and direct.cc, which needs no XLA.

#pragma once

#include <cstdint>
#include <utility>

#include "instruction_sets.h"
#include "rule.h"

namespace optim4rl {

// The compilations of rule.cc, the fastest first.
#ifdef __x86_64__
extern const Arithmetic avx512, avx2, sse2;
constexpr const Arithmetic* kCompiled[] = {&avx512, &avx2, &sse2};
#else
extern const Arithmetic portable;
constexpr const Arithmetic* kCompiled[] = {&portable};
#endif

// The one in use; null where the one asked for is not to be had.
inline const Arithmetic* arithmetic() {
  static const Arithmetic* const chosen = choose(kCompiled);
  return chosen;
}

// Gives each array its place in the flat vector of weights, in the order of packing.py. `sizes`
// holds the inputs and outputs of each network, then the sizes of the head's hidden layers.
inline void place_weights(Rule& rule, const int64_t* sizes) {
  const int64_t H = rule.hidden;
  const int64_t* const hidden_layers = sizes + 2 * rule.num_networks;
  int64_t offset = 0;
  const auto take = [&offset](int64_t floats) { return std::exchange(offset, offset + floats); };
  for (int i = 0; i < rule.num_networks; ++i) {
    Network& network = rule.networks[i];
    network.inputs = static_cast<int>(sizes[2 * i]);
    network.features = network.inputs - rule.num_segment_inputs;
    if (H > 0) {
      network.input = take(3 * H * network.inputs);
      network.bias = take(3 * H);
      network.hidden_kernel = take(3 * H * H);
      network.bias_new = take(H);
    }
    int inputs = H > 0 ? rule.hidden : network.inputs;
    for (int l = 0; l < rule.num_layers; ++l) {
      Layer& layer = network.layers[l];
      layer.inputs = inputs;
      layer.outputs =
          static_cast<int>(l + 1 < rule.num_layers ? hidden_layers[l] : sizes[2 * i + 1]);
      layer.kernel = take(int64_t{layer.inputs} * layer.outputs);
      layer.bias = take(layer.outputs);
      inputs = layer.outputs;
    }
  }
  rule.num_weights = offset;
}

// The rule that packing.py has written, but for its segments.
inline Rule unpack_rule(const int64_t* sizes, const float* settings) {
  Rule rule = {};
  rule.processing = static_cast<Processing>(*sizes++);
  rule.structure = static_cast<Structure>(*sizes++);
  rule.has_sign = *sizes++ != 0;
  for (int* size : {&rule.num_moments, &rule.num_segment_inputs, &rule.hidden, &rule.num_networks,
                    &rule.num_layers})
    *size = static_cast<int>(*sizes++);
  for (float* setting :
       {&rule.clip, &rule.step_scale, &rule.log_epsilon, &rule.log_shift, &rule.log_scale,
        &rule.epsilon, &rule.beta1, &rule.beta2, &rule.beta_slow, &rule.fresh_weight,
        &rule.slow_weight})
    *setting = *settings++;
  place_weights(rule, sizes);
  return rule;
}

}  // namespace optim4rl
