package change

// UnitFields are groups of what a manager can be asked about a unit beside its
// name and its state. Each has its price: some 30 us of the manager's time for
// a property, and twenty times that for FieldStaleFiles.
type UnitFields uint32

// The groups, and what of UnitState they fill.
const (
	FieldNames      UnitFields = 1 << iota // Names
	FieldFragment                          // FragmentPath
	FieldDropIns                           // DropIns
	FieldType                              // Type
	FieldMainPID                           // MainPID
	FieldCanReload                         // CanReload
	FieldRefuses                           // RefuseManualStop
	FieldInvoked                           // InvokedMonoUSec
	FieldChanged                           // StateChangeMonoUSec
	FieldEntered                           // ActiveEnterMonoUSec, InvokedMonoUSec, LastStartUSec
	FieldNeededBy                          // RequiredBy, RequisiteOf, BoundBy, ConsistsOf
	FieldPropagates                        // PropagatesReloadTo, PropagatesStopTo
	FieldTriggers                          // Triggers, TriggeredBy
	FieldStaleFiles                        // NeedDaemonReload
	FieldGroup                             // ControlGroup
	FieldInvocation                        // InvocationID
	FieldFortune                           // all the rest: how it fares

	AllFields = FieldFortune<<1 - 1
)
