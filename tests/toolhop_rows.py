"""Rows in ToolHop's format, written for the tests: the upstream data was not at hand."""

RIVER, LENGTH = "Which river flows through Vienna?", "How long is the Danube?"


def tool(name, argument):
    properties = {argument: {"type": "string", "description": "what it is about"}}
    return {
        "name": name,
        "description": f"Looks up the {name}.",
        "parameters": {"type": "object", "properties": properties, "required": [argument]},
    }


ROW = {
    "id": 7,
    "question": "How long is the river that flows through Vienna, in km?",
    "answer": "2850.0",
    "sub_task": {RIVER: "Danube", LENGTH: "2850.0"},
    "tools": {RIVER: tool("river_finder", "city"), LENGTH: tool("river_length", "river")},
    "functions": [
        "def river_finder(city):\n    return {'Vienna': 'Danube', 'Bonn': 'Rhine'}[city]",
        "def river_length(river):\n    return 2850.0 if river == 'Danube' else 1233.0",
    ],
    "domain": "geography",
}
