package main

import "runtime/debug"

// version is the package's, set when it is built.
var version = ""

// programVersion is the package's version, else that of the commit, which go build
// stamps where it can.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}
