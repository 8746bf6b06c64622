// What the driver (ffi.cc) and the arithmetic (conv.cc, compiled once per instruction set) share.
//
// Two layers over observations of few ones among zeros: a 2 x 2 convolution with ReLU, and the
// product of its flattened images with the kernel of a dense layer. An image differs from
// relu(bias) only at the positions that a one touches, at most four for each.
//
// Only plain structs live here: an inline function of a header would be compiled for several
// instruction sets, and the linker could keep the one that this machine cannot run.

#pragma once

#include <cstdint>

namespace optim4rl {

// The sizes of both layers, and of a batch of observations.
struct Layers {
  int64_t shape[3];     // of an observation
  bool channels_first;  // [channels, height, width], or [height, width, channels]
  int64_t size, width, channels;
  int64_t positions;  // height x width
  int64_t taps;       // 4 x channels
  int64_t filters, units;
  int64_t ones, batch;
};

// One agent's operands: places [ones, batch], of which those beyond an observation are absent ones;
// conv_kernel [taps, filters], conv_bias [filters], kernel [positions, filters, units].
struct Agent {
  const int32_t* places;
  const float *conv_kernel, *conv_bias, *kernel;
};

// A one of an observation reaches a position through a tap. `next` is the next touch of the same
// position, by its place among all of them; -1 ends the list.
struct Touch {
  int32_t observation, tap, next;
};

// An agent's touches as a list for each position, in the order of the observations.
struct Touches {
  Touch* all;      // room for 4 x ones x batch
  int32_t* first;  // [positions]
};

// The arithmetic for one instruction set. A `workspace` is aligned to 64 bytes and holds as many
// floats as the function of that name says.
struct Arithmetic {
  const char* name;
  int64_t (*forward_workspace)(const Layers&, int64_t observations);
  // Observations [begin, end) of one agent; `out` [batch, units].
  void (*forward)(const Layers&, const Agent&, int64_t begin, int64_t end, float* workspace,
                  float* out);
  // Lists what observations [begin, end) of one agent touch.
  void (*list)(const Layers&, const Agent&, int64_t begin, int64_t end, const Touches&);
  int64_t (*backward_workspace)(const Layers&);
  // Positions [begin, end) of one agent, from the cotangent [batch, units] of `out`. Writes their
  // part of d_kernel [positions, filters, units], and what they add to the gradients of the
  // convolution: d_conv [taps + 1, filters], the bias last.
  void (*backward)(const Layers&, const Agent&, const Touches&, const float* cotangent,
                   int64_t begin, int64_t end, float* workspace, float* d_kernel, float* d_conv);
};

}  // namespace optim4rl
