// The sampler's part of russet._core.
#include "sampler/sampler.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <tuple>

#include "bindings/arrays.h"
#include "core/check.h"

namespace py = pybind11;
using namespace russet;

namespace {

std::vector<std::string> names_of(const std::vector<Step>& steps) {
  std::vector<std::string> names;
  for (const Step step : steps) names.push_back(kStepNames[int(step)]);
  return names;
}

std::vector<Step> steps_of(const std::vector<std::string>& names) {
  std::vector<Step> steps;
  for (const std::string& name : names) {
    const auto* found = std::find(std::begin(kStepNames), std::end(kStepNames), name);
    check(found != std::end(kStepNames), ErrorKind::usage, "samplers: no step is called '", name, "'");
    const auto step = Step(found - std::begin(kStepNames));
    check(std::find(steps.begin(), steps.end(), step) == steps.end(), ErrorKind::usage, "samplers: '", name,
          "' is there twice");
    steps.push_back(step);
  }
  return steps;
}

Sampler make_sampler(const SamplingOptions& options, uint64_t seed, const std::vector<int32_t>& prompt) {
  for (const std::vector<int32_t>& word : options.bad_words)
    check(!word.empty(), ErrorKind::usage, "bad_words: expected at least one token in each");
  for (const auto& [tokens, bias] : options.sequence_bias)
    check(!tokens.empty(), ErrorKind::usage, "sequence_bias: expected at least one token in each");
  return Sampler(options, seed, prompt);
}

std::span<const float> row_of(const Array<float>& logits) {
  check(logits.ndim() == 1 || (logits.ndim() == 2 && logits.shape(0) == 1), ErrorKind::usage,
        "logits: expected one row of them");
  return {logits.data(), size_t(logits.size())};
}

// None: every token may come.
using AllowedArray = std::optional<Array<uint32_t>>;

Sampler::Allowed words_of(const AllowedArray& allowed) {
  if (!allowed) return {};
  check(allowed->ndim() == 1 && allowed->size() > 0, ErrorKind::usage,
        "allowed: expected one row of words with a bit for each token");
  return {allowed->data(), size_t(allowed->size())};
}

std::vector<int32_t> sample_all(const std::vector<Sampler*>& samplers, const Array<float>& logits,
                                int n_threads) {
  check(logits.ndim() == 2 && size_t(logits.shape(0)) == samplers.size(), ErrorKind::usage,
        "sample_rows: expected logits [", samplers.size(), ", vocab_size], a row for each sampler");
  check(std::set<Sampler*>(samplers.begin(), samplers.end()).size() == samplers.size(), ErrorKind::usage,
        "sample_rows: one sampler appears twice");
  std::vector<int32_t> tokens(samplers.size());
  const py::gil_scoped_release release;
  sample_rows(samplers, logits.data(), int(logits.shape(1)), tokens.data(), n_threads);
  return tokens;
}

}  // namespace

void bind_sampler(py::module_& m) {
  py::class_<SamplingOptions>(m, "SamplingOptions")
      .def(py::init<>())
      .def_property(
          "steps", [](const SamplingOptions& o) { return names_of(o.steps); },
          [](SamplingOptions& o, const std::vector<std::string>& names) { o.steps = steps_of(names); })
      .def_readwrite("temperature", &SamplingOptions::temperature)
      .def_readwrite("top_k", &SamplingOptions::top_k)
      .def_readwrite("top_p", &SamplingOptions::top_p)
      .def_readwrite("min_p", &SamplingOptions::min_p)
      .def_readwrite("typical_p", &SamplingOptions::typical_p)
      .def_readwrite("top_n_sigma", &SamplingOptions::top_n_sigma)
      .def_readwrite("xtc_probability", &SamplingOptions::xtc_probability)
      .def_readwrite("xtc_threshold", &SamplingOptions::xtc_threshold)
      .def_readwrite("mirostat_tau", &SamplingOptions::mirostat_tau)
      .def_readwrite("mirostat_eta", &SamplingOptions::mirostat_eta)
      .def_readwrite("repetition_penalty", &SamplingOptions::repetition_penalty)
      .def_readwrite("presence_penalty", &SamplingOptions::presence_penalty)
      .def_readwrite("frequency_penalty", &SamplingOptions::frequency_penalty)
      .def_readwrite("penalty_window", &SamplingOptions::penalty_window)
      .def_readwrite("dry_multiplier", &SamplingOptions::dry_multiplier)
      .def_readwrite("dry_base", &SamplingOptions::dry_base)
      .def_readwrite("dry_allowed_length", &SamplingOptions::dry_allowed_length)
      .def_readwrite("dry_window", &SamplingOptions::dry_window)
      .def_readwrite("dry_breakers", &SamplingOptions::dry_breakers)
      .def_readwrite("logit_bias", &SamplingOptions::logit_bias)
      .def_readwrite("sequence_bias", &SamplingOptions::sequence_bias)
      .def_readwrite("bad_words", &SamplingOptions::bad_words)
      .def_readwrite("no_repeat_ngram_size", &SamplingOptions::no_repeat_ngram_size)
      .def_readwrite("min_tokens", &SamplingOptions::min_tokens)
      .def_readwrite("ends", &SamplingOptions::ends);

  py::class_<Wanted>(m, "Wanted")
      .def(py::init([](int k, double margin, std::vector<int32_t> ids, const AllowedArray& allowed) {
             check(k >= 0 && margin >= 0, ErrorKind::usage, "Wanted: expected k and margin from 0 on");
             std::sort(ids.begin(), ids.end());
             const Sampler::Allowed words = words_of(allowed);
             return Wanted{k, margin, std::move(ids), {words.begin(), words.end()}};
           }),
           py::arg("k"), py::arg("margin") = 0, py::arg("ids") = std::vector<int32_t>(),
           py::arg("allowed") = py::none())
      .def_readonly("k", &Wanted::k)
      .def_readonly("margin", &Wanted::margin)
      .def_readonly("ids", &Wanted::ids);

  py::class_<Sampler>(m, "Sampler")
      .def(py::init(&make_sampler), py::arg("options") = SamplingOptions(), py::arg("seed") = 0,
           py::arg("prompt") = std::vector<int32_t>())
      .def(
          "sample",
          [](Sampler& sampler, const Array<float>& logits, const AllowedArray& allowed) {
            const std::span<const float> row = row_of(logits);
            const Sampler::Allowed words = words_of(allowed);
            const py::gil_scoped_release release;
            return sampler.sample(row, words);
          },
          py::arg("logits"), py::arg("allowed") = py::none())
      .def(
          "probabilities",
          [](Sampler& sampler, const Array<float>& logits, const AllowedArray& allowed) {
            Array<double> p(logits.size());
            sampler.probabilities(row_of(logits), p.mutable_data(), words_of(allowed));
            return p;
          },
          py::arg("logits"), py::arg("allowed") = py::none())
      .def(
          "best",
          [](Sampler& sampler, const Array<float>& logits, int n, const AllowedArray& allowed) {
            check(n >= 1, ErrorKind::usage, "best: expected n from 1 on, got ", n);
            const std::span<const float> row = row_of(logits);
            const Sampler::Allowed words = words_of(allowed);
            std::vector<std::tuple<int32_t, double, double>> found;
            const py::gil_scoped_release release;
            for (const auto& [token, score, logprob] : sampler.best(row, n, words))
              found.emplace_back(token, score, logprob);
            return found;
          },
          py::arg("logits"), py::arg("n"), py::arg("allowed") = py::none())
      .def(
          "wanted",
          [](Sampler& sampler, const AllowedArray& allowed) { return sampler.wanted(words_of(allowed)); },
          py::arg("allowed") = py::none())
      .def("append", &Sampler::append, py::arg("token"))
      .def("__copy__", [](const Sampler& sampler) { return Sampler(sampler); });

  m.def("sample_rows", &sample_all, py::arg("samplers"), py::arg("logits"), py::arg("n_threads") = 1);
  m.def(
      "logprobs",
      [](const Array<float>& logits, int32_t token, int n_top) {
        check(n_top >= 0, ErrorKind::usage, "logprobs: expected n_top from 0 on, got ", n_top);
        const Logprobs found = logprobs(row_of(logits), token, n_top);
        return py::make_tuple(found.chosen, found.top);
      },
      py::arg("logits"), py::arg("token"), py::arg("n_top") = 0);
}
