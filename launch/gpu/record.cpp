// Records the libtorch operators that a program calls, and the shapes of its convolutions. Preload it into drnas-dist
// only (`mpirun ... env LD_PRELOAD=librecord.so drnas-dist ...`): a preloaded program that does not find libtorch does
// not start. Nothing is recorded unless DRNAS_RECORD is set. Built as follows, TORCH being the libtorch folder:
//
//   c++ -O2 -std=c++17 -shared -fPIC -I TORCH/include -L TORCH/lib record.cpp -ltorch_cpu -lc10 -o librecord.so
//
// JSON lines are appended to the file DRNAS_RECORD. Each new kind of convolution, forward or backward,
//
//   {"process": 7, "convolution": 0, "backward": false, "input": [8, 4, 32, 32], "weight": [8, 1, 3, 3], ...}
//
// is written before it runs, so that the last line names the one that crashed. When the process exits (not when it is
// killed), it writes the number of calls of each operator, and of each convolution in the order of the lines above:
//
//   {"process": 7, "operators": {"aten::conv2d": 12, ...}, "convolutions": [12, ...]}
//
// A composite operator is counted, and so are its parts: conv2d is one conv2d, one convolution, one _convolution and
// one backend convolution. Nodes of the backward pass are counted as "autograd::engine::evaluate_function: ...". Divide
// by the steps of the whole run to get the counts of one step.

// libtorch is built with NDEBUG; without it at::RecordFunction has a different layout.
#ifndef NDEBUG
#define NDEBUG
#endif
#include <ATen/record_function.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <mutex>
#include <string>
#include <unistd.h>
#include <unordered_map>
#include <vector>

namespace {

struct Record {
    int file = -1;
    // Callbacks also come from the threads of the backward pass.
    std::mutex mutex;
    std::map<std::string, unsigned long> operators;
    std::unordered_map<std::string, size_t> numbers;
    std::vector<unsigned long> convolutions;

    // One write: other processes may append to the same file.
    void append(const std::string& line) {
        const std::string text = "{\"process\": " + std::to_string(getpid()) + ", " + line + "}\n";
        if (write(file, text.data(), text.size()) < 0)
            perror("DRNAS_RECORD");
    }
};

// Never destroyed: threads may use it until the process exits.
Record& record() {
    static Record* const record = new Record;
    return *record;
}

std::string list(c10::ArrayRef<int64_t> values) {
    std::string text = "[";
    for (const int64_t value : values)
        text += (text.size() > 1 ? ", " : "") + std::to_string(value);
    return text + "]";
}

const char* json_bool(bool value) { return value ? "true" : "false"; }

// Returns the JSON fields that identify a convolution. Arguments: (input, weight, bias, stride, padding, dilation,
// transposed, output_padding, groups); of the backward pass: (grad_output, input, weight, bias_sizes, stride, ..., output_mask).
std::string fields(c10::ArrayRef<const c10::IValue> arguments, bool backward) {
    const size_t first = backward ? 1 : 0;
    const at::Tensor& input = arguments.at(first).toTensor();
    const at::Tensor& weight = arguments.at(first + 1).toTensor();
    const auto numbers = [&](size_t at) { return list(arguments.at(first + at).toIntVector()); };
    std::string text = "\"backward\": " + std::string(json_bool(backward));
    text += ", \"input\": " + list(input.sizes()) + ", \"weight\": " + list(weight.sizes());
    text += ", \"stride\": " + numbers(3) + ", \"padding\": " + numbers(4) + ", \"dilation\": " + numbers(5);
    text += ", \"transposed\": " + std::string(json_bool(arguments.at(first + 6).toBool()));
    text += ", \"groups\": " + std::to_string(arguments.at(first + 8).toInt());
    text += ", \"dtype\": \"" + std::string(c10::toString(input.scalar_type())) + "\"";
    text += ", \"channels_last\": " + std::string(json_bool(input.is_contiguous(at::MemoryFormat::ChannelsLast)));
    text += ", \"contiguous\": " + std::string(json_bool(input.is_contiguous()));
    text += ", \"device\": \"" + input.device().str() + "\"";
    if (backward) {
        const auto mask = arguments.at(first + 9).toBoolList();
        text += ", \"gradients\": [" + std::string(json_bool(mask.get(0))) + ", " + json_bool(mask.get(1)) + "]";
    }
    return text;
}

std::unique_ptr<at::ObserverContext> on_call(const at::RecordFunction& function) {
    Record& all = record();
    const char* const name = function.name();
    const bool forward = !strcmp(name, "aten::convolution");
    const bool backward = !forward && !strcmp(name, "aten::convolution_backward");
    std::string text;
    // A call with unreadable arguments is still counted; an exception here would end the program.
    if (forward || backward)
        try {
            text = fields(function.inputs(), backward);
        } catch (const std::exception&) {
            text = "\"backward\": " + std::string(json_bool(backward)) + ", \"unreadable\": true";
        }
    const std::lock_guard<std::mutex> lock(all.mutex);
    ++all.operators[name];
    if (text.empty())
        return nullptr;
    const auto [place, fresh] = all.numbers.emplace(text, all.convolutions.size());
    if (fresh) {
        all.convolutions.push_back(0);
        all.append("\"convolution\": " + std::to_string(place->second) + ", " + text);
    }
    ++all.convolutions[place->second];
    return nullptr;
}

void write_totals() {
    Record& all = record();
    const std::lock_guard<std::mutex> lock(all.mutex);
    // For example a child process that does not use libtorch.
    if (all.operators.empty())
        return;
    std::string text = "\"operators\": {";
    for (const auto& [name, count] : all.operators)
        text += (text.back() == '{' ? "\"" : ", \"") + name + "\": " + std::to_string(count);
    text += "}, \"convolutions\": " +
        list(std::vector<int64_t>(all.convolutions.begin(), all.convolutions.end()));
    all.append(text);
}

__attribute__((constructor)) void start() {
    const char* const path = getenv("DRNAS_RECORD");
    if (!path || !*path)
        return;
    record().file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (record().file < 0)
        return perror(path);
    at::addGlobalCallback(
        at::RecordFunctionCallback(on_call).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
    atexit(write_totals);
}

} // namespace
