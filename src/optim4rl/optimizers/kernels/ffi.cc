// The XLA FFI handlers: read the buffers, share the coordinates out to threads, add up the results.

#include <algorithm>
#include <memory>

#include "driver.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace optim4rl {

namespace {

namespace ffi = xla::ffi;

// How the coordinates of all agents are cut into tasks. It depends on the shapes alone: the partial
// sums, and so the results, are the same to the bit for any number of threads.
struct Partition {
  static constexpr int64_t kSmallest = 4096;  // coordinates worth a task
  static constexpr int64_t kTasks = 1024;     // enough for any machine; bounds the partial sums

  int64_t agents, n, chunks, chunk;

  Partition(int64_t agents, int64_t n) : agents(agents), n(n) {
    const int64_t most = std::max<int64_t>(1, kTasks / std::max<int64_t>(1, agents));
    const int64_t pieces = std::min(most, (n + kSmallest - 1) / kSmallest);
    // Whole segments of 4096, so that only the last chunk has a ragged end.
    chunk = ((n + pieces - 1) / pieces + kSmallest - 1) / kSmallest * kSmallest;
    chunks = (n + chunk - 1) / chunk;
  }

  int64_t tasks() const { return agents * chunks; }
  int64_t agent(int64_t task) const { return task / chunks; }
  int64_t begin(int64_t task) const { return task % chunks * chunk; }
  int64_t end(int64_t task) const { return std::min(n, begin(task) + chunk); }
};

// ---------------------------------------------------------------------------------------------
// Buffers and attributes
// ---------------------------------------------------------------------------------------------

// Remembers the first thing that was wrong with a call.
class Reader {
 public:
  Reader(ffi::RemainingArgs args, ffi::Dictionary attributes)
      : args_(args), attributes_(attributes) {}

  // The next operand, which must hold that many floats.
  const float* operand(int64_t floats) {
    auto buffer = args_.get<ffi::AnyBuffer>(next_++);
    if (!buffer.has_value()) return fail("an operand is missing");
    if (buffer->element_type() != ffi::DataType::F32) return fail("an operand is not float32");
    if (static_cast<int64_t>(buffer->element_count()) != floats)
      return fail("an operand has the wrong size");
    return static_cast<const float*>(buffer->untyped_data());
  }

  ffi::AnyBuffer::Dimensions dimensions(size_t index) {
    auto buffer = args_.get<ffi::AnyBuffer>(index);
    if (buffer.has_value()) return buffer->dimensions();
    fail("an operand is missing");
    return {};
  }

  template <class T>
  T attribute(const char* name) {
    auto value = attributes_.get<T>(name);
    if (value.has_value()) return *value;
    fail(name);
    return T{};
  }

  bool failed() const { return wrong_ != nullptr; }
  ffi::Error error() const { return ffi::Error::InvalidArgument(wrong_); }

 private:
  std::nullptr_t fail(const char* what) {
    if (wrong_ == nullptr) wrong_ = what;
    return nullptr;
  }

  ffi::RemainingArgs args_;
  ffi::Dictionary attributes_;
  size_t next_ = 0;
  const char* wrong_ = nullptr;
};

Rule read_rule(Reader& reader) {
  using Sizes = ffi::Span<const int64_t>;
  using Settings = ffi::Span<const float>;
  const auto sizes = reader.attribute<Sizes>("sizes");
  const auto settings = reader.attribute<Settings>("settings");
  const auto ends = reader.attribute<Sizes>("segment_ends");
  const auto inputs = reader.attribute<Settings>("segment_inputs");
  if (reader.failed()) return {};
  Rule rule = unpack_rule(sizes.begin(), settings.begin());
  rule.segment_ends = ends.begin();
  rule.segment_inputs = inputs.begin();
  return rule;
}

int64_t product(ffi::AnyBuffer::Dimensions dimensions, size_t count) {
  int64_t total = 1;
  for (size_t i = 0; i < count; ++i) total *= dimensions[i];
  return total;
}

// Networks without a cell have no hidden state.
int num_hidden(const Rule& rule) { return rule.hidden > 0 ? rule.num_networks : 0; }

// The operands of all agents: weights, clocks, gradients, then the state.
struct Operands {
  int64_t agents, n;
  int steps;
  const float *weights, *clocks, *gradients, *moments;
  const float* hidden[kMaxNetworks] = {};

  Operands(Reader& reader, const Rule& rule, int64_t steps_, int64_t agents_, int64_t n_)
      : agents(agents_), n(n_), steps(static_cast<int>(steps_)) {
    weights = reader.operand(agents * rule.num_weights);
    clocks = reader.operand(agents * steps * 4);
    gradients = reader.operand(agents * steps * n);
    for (int i = 0; i < num_hidden(rule); ++i)
      hidden[i] = reader.operand(agents * rule.hidden * n);
    moments = reader.operand(agents * rule.num_moments * n);
  }

  Agent agent(const Rule& rule, int64_t index) const {
    Agent one = {};
    one.n = n;
    one.steps = steps;
    one.weights = weights + index * rule.num_weights;
    one.clocks = reinterpret_cast<const Clock*>(clocks) + index * steps;
    one.gradients = gradients + index * steps * n;
    one.moments = moments + index * rule.num_moments * n;
    for (int i = 0; i < num_hidden(rule); ++i) one.hidden[i] = hidden[i] + index * rule.hidden * n;
    return one;
  }
};

// ---------------------------------------------------------------------------------------------
// Handlers
// ---------------------------------------------------------------------------------------------

// Operands: weights [*agents, W], clocks [*agents, 4], gradient [*agents, n], for each network its
// hidden state [*agents, hidden, n], moments [*agents, M, n]. Results: direction [*agents, n], new
// hidden states and new moments, which may lie where the old ones do.
ffi::Error step(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets results,
                ffi::Dictionary attributes) {
  Reader reader(args, attributes);
  const Rule rule = read_rule(reader);
  const auto shape = reader.dimensions(2);
  if (reader.failed()) return reader.error();
  const int64_t n = shape.back();
  const Operands operands(reader, rule, 1, product(shape, shape.size() - 1), n);
  if (reader.failed()) return reader.error();
  const auto result = [&results](size_t index) {
    return static_cast<float*>((*results.get<ffi::AnyBuffer>(index))->untyped_data());
  };
  float* const direction = result(0);
  float* hidden[kMaxNetworks] = {};
  for (int i = 0; i < num_hidden(rule); ++i) hidden[i] = result(1 + i);
  float* const moments = result(1 + num_hidden(rule));

  const Partition partition(operands.agents, n);
  const int64_t floats = arithmetic()->step_workspace(rule);
  Tasks::run(pool, partition.tasks(), [&](int64_t task) {
    const int64_t index = partition.agent(task);
    Agent agent = operands.agent(rule, index);
    agent.direction = direction + index * n;
    agent.new_moments = moments + index * rule.num_moments * n;
    for (int i = 0; i < num_hidden(rule); ++i)
      agent.new_hidden[i] = hidden[i] + index * rule.hidden * n;
    arithmetic()->step(rule, agent, partition.begin(task), partition.end(task), workspace(floats));
  });
  return ffi::Error::Success();
}

// Operands: weights [*agents, W], clocks [*agents, K, 4], gradients [*agents, K, n], the state as
// for a step, cotangents [*agents, K, n]. Result: the gradient of the weights [*agents, W].
ffi::Error replay(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets results,
                  ffi::Dictionary attributes) {
  Reader reader(args, attributes);
  const Rule rule = read_rule(reader);
  const auto shape = reader.dimensions(2);
  if (reader.failed()) return reader.error();
  const int64_t n = shape.back(), steps = shape[shape.size() - 2];
  const Operands operands(reader, rule, steps, product(shape, shape.size() - 2), n);
  const float* cotangents = reader.operand(operands.agents * steps * n);
  if (reader.failed()) return reader.error();
  float* const gradient =
      static_cast<float*>((*results.get<ffi::AnyBuffer>(0))->untyped_data());

  const Partition partition(operands.agents, n);
  const int64_t floats = arithmetic()->replay_workspace(rule, operands.steps);
  std::unique_ptr<float[]> partial(new float[partition.tasks() * rule.num_weights]);
  Tasks::run(pool, partition.tasks(), [&](int64_t task) {
    const int64_t index = partition.agent(task);
    Agent agent = operands.agent(rule, index);
    agent.cotangents = cotangents + index * steps * n;
    arithmetic()->replay(rule, agent, partition.begin(task), partition.end(task),
                         workspace(floats), &partial[task * rule.num_weights]);
  });
  for (int64_t agent = 0; agent < operands.agents; ++agent) {
    for (int64_t i = 0; i < rule.num_weights; ++i) {
      double total = 0.0;
      for (int64_t chunk = 0; chunk < partition.chunks; ++chunk)
        total += partial[(agent * partition.chunks + chunk) * rule.num_weights + i];
      gradient[agent * rule.num_weights + i] = static_cast<float>(total);
    }
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(optim4rl_step, optim4rl::step,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(optim4rl_replay, optim4rl::replay,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attrs());
}  // extern "C"
#pragma GCC visibility pop
