// Package confine holds the tests of what the sandbox keeps its commands from, each with a
// negative control: the protection is taken away (sandbox.Spec.Without), and what it bars
// succeeds. docs/sandbox.md lists them. They run in a child that has namespaces of its own, which
// stands for the host: what gets through harms nothing.
package confine
