// The XLA FFI handlers: read the buffers, share the work out to threads, add up the results.
//
// Every operand and result may have further axes before its own, which are those of `jax.vmap`. An
// operand's are 1 where its arrays are shared, so that nothing is copied for each agent.

#include <algorithm>
#include <memory>

#include "conv.h"
#include "instruction_sets.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace optim4rl {

// The compilations of conv.cc, the fastest first.
#ifdef __x86_64__
extern const Arithmetic avx512, avx2, sse2;
constexpr const Arithmetic* kCompiled[] = {&avx512, &avx2, &sse2};
#else
extern const Arithmetic portable;
constexpr const Arithmetic* kCompiled[] = {&portable};
#endif

namespace {

namespace ffi = xla::ffi;
using Ints = ffi::Buffer<ffi::S32>;
using Floats = ffi::Buffer<ffi::F32>;
using Dimensions = ffi::AnyBuffer::Dimensions;

constexpr int64_t kSmallest = 64;  // observations worth a task
constexpr int64_t kTasks = 16;     // enough for most machines

const Arithmetic* arithmetic() {
  static const Arithmetic* const chosen = choose(kCompiled);
  return chosen;
}

// How many elements the axes from `first` on hold.
int64_t count(Dimensions axes, size_t first = 0) {
  int64_t total = 1;
  for (size_t axis = first; axis < axes.size(); ++axis) total *= axes[axis];
  return total;
}

// The axes of the agents, from the shape of a result: without its own last ones.
struct Agents {
  Dimensions axes;

  Agents(Dimensions shape, size_t own) : axes(shape.first(shape.size() - own)) {}

  int64_t size() const { return count(axes); }

  // Where an operand's array of one agent begins.
  int64_t offset(Dimensions shape, int64_t agent) const {
    int64_t stride = count(shape, axes.size()), total = 0;
    for (size_t axis = axes.size(); axis-- > 0; agent /= axes[axis]) {
      if (shape[axis] > 1) total += agent % axes[axis] * stride;
      stride *= shape[axis];
    }
    return total;
  }
};

// What both handlers read.
struct Operands {
  Ints places;
  Floats conv_kernel, conv_bias, kernel;
  Layers layers;
  Agents agents;

  Agent agent(int64_t index) const {
    return {places.typed_data() + agents.offset(places.dimensions(), index),
            conv_kernel.typed_data() + agents.offset(conv_kernel.dimensions(), index),
            conv_bias.typed_data() + agents.offset(conv_bias.dimensions(), index),
            kernel.typed_data() + agents.offset(kernel.dimensions(), index)};
  }

  // Whether an operand has the agents' axes before its own, and of its own the right sizes.
  bool has(Dimensions shape, size_t own, int64_t size) const {
    if (shape.size() != agents.axes.size() + own) return false;
    for (size_t axis = 0; axis < agents.axes.size(); ++axis)
      if (shape[axis] != 1 && shape[axis] != agents.axes[axis]) return false;
    return count(shape, agents.axes.size()) == size;
  }

  bool fit() const {
    const Layers& l = layers;
    return has(places.dimensions(), 2, l.ones * l.batch) &&
           has(conv_kernel.dimensions(), 4, l.taps * l.filters) &&
           has(conv_bias.dimensions(), 1, l.filters) &&
           has(kernel.dimensions(), 2, l.positions * l.filters * l.units);
  }
};

// The sizes, from the operands' own axes.
Layers layers_of(ffi::Span<const int64_t> shape, bool channels_first, Dimensions places,
                 Dimensions conv_bias, Dimensions kernel) {
  Layers l = {};
  std::copy(shape.begin(), shape.end(), l.shape);
  l.channels_first = channels_first;
  l.width = shape[channels_first ? 2 : 1];
  l.channels = shape[channels_first ? 0 : 2];
  l.size = shape[0] * shape[1] * shape[2];
  l.positions = l.size / l.channels;
  l.taps = 4 * l.channels;
  l.filters = conv_bias.back();
  l.units = kernel.back();
  l.ones = places[places.size() - 2];
  l.batch = places.back();
  return l;
}

// Operands: places [*agents, ones, batch], conv kernel [*agents, 2, 2, channels, filters], conv
// bias [*agents, filters], kernel [*agents, positions x filters, units]. Result: out [*agents,
// batch, units].
ffi::Error forward(ffi::ThreadPool pool, Ints places, Floats conv_kernel, Floats conv_bias,
                   Floats kernel, ffi::Result<Floats> out, ffi::Span<const int64_t> shape,
                   bool channels_first) {
  const Operands operands = {places,
                             conv_kernel,
                             conv_bias,
                             kernel,
                             layers_of(shape, channels_first, places.dimensions(),
                                       conv_bias.dimensions(), kernel.dimensions()),
                             Agents(out->dimensions(), 2)};
  if (!operands.fit()) return ffi::Error::InvalidArgument("an operand has the wrong shape");
  const Layers& l = operands.layers;
  // Each observation is computed by itself, however they are cut.
  const int64_t chunk = std::max(kSmallest, (l.batch + kTasks - 1) / kTasks);
  const int64_t chunks = (l.batch + chunk - 1) / chunk;
  const int64_t floats = arithmetic()->forward_workspace(l, chunk);
  Tasks::run(pool, operands.agents.size() * chunks, [&](int64_t task) {
    const int64_t agent = task / chunks, begin = task % chunks * chunk;
    arithmetic()->forward(l, operands.agent(agent), begin, std::min(l.batch, begin + chunk),
                          workspace(floats), out->typed_data() + agent * l.batch * l.units);
  });
  return ffi::Error::Success();
}

// Operands: those of `forward`, and the cotangent of its result. Results: the gradients of conv
// kernel, conv bias and kernel.
ffi::Error backward(ffi::ThreadPool pool, Ints places, Floats conv_kernel, Floats conv_bias,
                    Floats kernel, Floats cotangent, ffi::Result<Floats> d_conv_kernel,
                    ffi::Result<Floats> d_conv_bias, ffi::Result<Floats> d_kernel,
                    ffi::Span<const int64_t> shape, bool channels_first) {
  const Operands operands = {places,
                             conv_kernel,
                             conv_bias,
                             kernel,
                             layers_of(shape, channels_first, places.dimensions(),
                                       conv_bias.dimensions(), kernel.dimensions()),
                             Agents(d_kernel->dimensions(), 2)};
  const Layers& l = operands.layers;
  if (!operands.fit() || !operands.has(cotangent.dimensions(), 2, l.batch * l.units))
    return ffi::Error::InvalidArgument("an operand has the wrong shape");
  const int64_t agents = operands.agents.size();
  const int64_t most = 4 * l.ones * l.batch;
  const std::unique_ptr<Touch[]> all(new Touch[agents * most]);
  const std::unique_ptr<int32_t[]> first(new int32_t[agents * l.positions]);
  const auto touches = [&](int64_t agent) {
    return Touches{&all[agent * most], &first[agent * l.positions]};
  };
  // How the positions are cut depends on the shapes alone: the sums are the same to the bit for any
  // number of threads.
  const int64_t pieces =
      std::min(l.positions, std::max<int64_t>(1, kTasks / std::max<int64_t>(1, agents)));
  const int64_t chunk = (l.positions + pieces - 1) / pieces;
  const int64_t chunks = (l.positions + chunk - 1) / chunk;
  const int64_t floats = arithmetic()->backward_workspace(l);
  const int64_t num_sums = (l.taps + 1) * l.filters;
  const std::unique_ptr<float[]> sums(new float[agents * chunks * num_sums]);
  if (chunks > 1)
    Tasks::run(pool, agents, [&](int64_t agent) {
      arithmetic()->list(l, operands.agent(agent), 0, l.batch, touches(agent));
    });
  Tasks::run(pool, agents * chunks, [&](int64_t task) {
    const int64_t agent = task / chunks, begin = task % chunks * chunk;
    const Agent one = operands.agent(agent);
    if (chunks == 1) arithmetic()->list(l, one, 0, l.batch, touches(agent));
    arithmetic()->backward(
        l, one, touches(agent),
        cotangent.typed_data() + operands.agents.offset(cotangent.dimensions(), agent), begin,
        std::min(l.positions, begin + chunk), workspace(floats),
        d_kernel->typed_data() + agent * l.positions * l.filters * l.units, &sums[task * num_sums]);
  });
  const int64_t num_taps = l.taps * l.filters;
  for (int64_t agent = 0; agent < agents; ++agent)
    for (int64_t i = 0; i < num_sums; ++i) {
      double total = 0.0;
      for (int64_t piece = 0; piece < chunks; ++piece)
        total += sums[(agent * chunks + piece) * num_sums + i];
      float& result = i < num_taps
                          ? d_conv_kernel->typed_data()[agent * num_taps + i]
                          : d_conv_bias->typed_data()[agent * l.filters + i - num_taps];
      result = static_cast<float>(total);
    }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace optim4rl

#pragma GCC visibility push(default)
extern "C" {

// The name of the instruction set in use, or null where the one asked for is not to be had.
const char* optim4rl_instruction_set() {
  const optim4rl::Arithmetic* chosen = optim4rl::arithmetic();
  return chosen == nullptr ? nullptr : chosen->name;
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(optim4rl_conv_forward, optim4rl::forward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<optim4rl::Ints>()
                                  .Arg<optim4rl::Floats>()
                                  .Arg<optim4rl::Floats>()
                                  .Arg<optim4rl::Floats>()
                                  .Ret<optim4rl::Floats>()
                                  .Attr<xla::ffi::Span<const int64_t>>("shape")
                                  .Attr<bool>("channels_first"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(optim4rl_conv_backward, optim4rl::backward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<optim4rl::Ints>()
                                  .Arg<optim4rl::Floats>()
                                  .Arg<optim4rl::Floats>()
                                  .Arg<optim4rl::Floats>()
                                  .Arg<optim4rl::Floats>()
                                  .Ret<optim4rl::Floats>()
                                  .Ret<optim4rl::Floats>()
                                  .Ret<optim4rl::Floats>()
                                  .Attr<xla::ffi::Span<const int64_t>>("shape")
                                  .Attr<bool>("channels_first"));
}  // extern "C"
#pragma GCC visibility pop
