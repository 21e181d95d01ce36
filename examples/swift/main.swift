// Streams from a russet model inside a Swift program. docs/swift.md says what the two variables must hold:
//
//   PYTHON_LIBRARY=... RUSSET_SITE=.venv/lib/python3.12/site-packages swift run RussetDemo "Once upon a time"
//
// Not run yet: no Mac was at hand. tests/embed_host.c takes the same steps in C, and is run by the tests.
import Foundation
import PythonKit

let prompt = CommandLine.arguments.dropFirst().first ?? "Once upon a time"

func stream() throws {
    if let folder = ProcessInfo.processInfo.environment["RUSSET_SITE"] {
        Python.import("site").addsitedir(folder)
    }
    let russet = try Python.attemptImport("russet")
    let model = try russet.load.throwing.dynamicallyCall(withArguments: [])  // or ["Qwen/Qwen3-0.6B"]

    let options: KeyValuePairs<String, PythonConvertible> = ["": prompt, "max_tokens": 100, "seed": 1]
    var speed = 0.0
    for piece in try model.stream.throwing.dynamicallyCall(withKeywordArguments: options) {
        let text = String(piece.text) ?? ""
        speed = Double(piece.tokens_per_s) ?? 0
        DispatchQueue.main.async { FileHandle.standardOutput.write(Data(text.utf8)) }
    }

    let ids = [Int](try model.generate_tokens.throwing.dynamicallyCall(withKeywordArguments: options)) ?? []
    let summary = "\n\(ids.count) tokens, \(String(format: "%.1f", speed)) a second: \(ids.prefix(5)) and so on\n"
    DispatchQueue.main.async { FileHandle.standardOutput.write(Data(summary.utf8)) }
}

// This thread alone speaks to Python, so nobody else ever needs its lock.
let python = Thread {
    do {
        try stream()
        DispatchQueue.main.async { exit(0) }
    } catch {
        FileHandle.standardError.write(Data("\(error)\n".utf8))
        exit(1)
    }
}
python.stackSize = 8 << 20
python.start()
dispatchMain()
