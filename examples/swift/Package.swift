// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "RussetDemo",
    platforms: [.macOS(.v14)],
    dependencies: [.package(url: "https://github.com/pvieito/PythonKit.git", from: "0.5.1")],
    targets: [.executableTarget(name: "RussetDemo", dependencies: ["PythonKit"], path: ".", sources: ["main.swift"])]
)
